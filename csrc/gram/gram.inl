// gram: the bodies, compiled once per instruction set. See gram.h for the formulas and the steps.
#include <cstring>

#include "../common/lanes.h"
#include "gram.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gcext::GCEXT_ISA {
namespace {

uint32_t sign_of(float value) { return bits_of(value) >> 31; }

// Step 1. Without a branch: which entry makes many of them is as good as random.
void tally(const PacketView& p, Span span, int64_t begin, uint16_t many, Tally* tally) {
  p.with_index([&](auto* index) {
    uint16_t columns = tally->columns;
    for (int64_t i = span.from; i < span.until; ++i) {
      const int64_t element = index[i] - begin;
      const uint16_t before = tally->number[element];
      const uint16_t number = static_cast<uint16_t>(before + (before < UINT16_MAX));
      const bool now = number == many;
      columns = static_cast<uint16_t>(columns + now);
      tally->number[element] = number;
      tally->column[element] = now ? columns : tally->column[element];
    }
    tally->columns = columns;
  });
}

// Step 2. Entries become bytes first: planes made bit by bit wait for the word's last store.
constexpr uint8_t kThere = 0x80, kMinus = 0x40;

template <class Int>
void set_bytes(const Int* index, const float* value, Span span, int64_t begin,
               const uint16_t* column, uint8_t* bytes) {
  for (int64_t i = span.from; i < span.until; ++i)
    bytes[column[index[i] - begin]] = static_cast<uint8_t>(kThere | kMinus * sign_of(value[i]));
}

// The top bits of 64 bytes, and those below them.
#if defined(__AVX512BW__)
void gather_bits(const uint8_t* bytes, uint64_t* top, uint64_t* second) {
  const __m512i x = _mm512_loadu_si512(bytes);
  *top = _mm512_movepi8_mask(x);
  *second = _mm512_movepi8_mask(_mm512_add_epi8(x, x));
}
#elif defined(__AVX2__)
void gather_bits(const uint8_t* bytes, uint64_t* top, uint64_t* second) {
  uint64_t bits[4];
  for (int64_t i = 0; i < 2; ++i) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32 * i));
    bits[i] = static_cast<uint32_t>(_mm256_movemask_epi8(x));
    bits[2 + i] = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_add_epi8(x, x)));
  }
  *top = bits[0] | bits[1] << 32;
  *second = bits[2] | bits[3] << 32;
}
#else
uint64_t gather_eight(uint64_t x) {  // the product moves the bit of byte i to place 56 + i
  return ((x >> 7 & 0x0101010101010101u) * 0x0102040810204080u) >> 56;
}
void gather_bits(const uint8_t* bytes, uint64_t* top, uint64_t* second) {
  *top = *second = 0;
  for (int64_t i = 0; i < 8; ++i) {
    uint64_t x = 0;
    for (int64_t j = 0; j < 8; ++j) x |= uint64_t{bytes[8 * i + j]} << (8 * j);
    *top |= gather_eight(x) << (8 * i);
    *second |= gather_eight(x << 1) << (8 * i);
  }
}
#endif

void mark(const PacketView& p, Span span, int64_t begin, const uint16_t* column, int64_t word,
          int64_t words, uint8_t* scratch, Planes* planes) {
  p.with_index(
      [&](auto* index) { set_bytes(index, p.value, span, begin, column, scratch + kNoColumn); });
  uint8_t* bytes = scratch + kNoColumn + 1;
  for (int64_t w = 0; w < words; ++w)
    gather_bits(bytes + 64 * w, &planes->there[word + w], &planes->minus[word + w]);
  memset(bytes, 0, static_cast<size_t>(64 * words));
}

#if defined(__AVX512BW__)
// Step 3. Called only where the processor has the instruction.
constexpr double kWordNs = 0.16;

__attribute__((target("avx512vpopcntdq"))) void agree(const Planes* const* rows,
                                                      const Planes* const* columns, int64_t words,
                                                      int64_t* count) {
  static_assert(kRows == 2 && kColumns == 4, "eight sums of eight lanes fill a register");
  __m512i both[kRows][kColumns], apart[kRows][kColumns];
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kColumns; ++c) both[r][c] = apart[r][c] = _mm512_setzero_si512();
  for (int64_t w = 0; w < words; w += kWordStep) {
    __m512i there[kRows], minus[kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      there[r] = _mm512_loadu_si512(rows[r]->there + w);
      minus[r] = _mm512_loadu_si512(rows[r]->minus + w);
    }
    for (int64_t c = 0; c < kColumns; ++c) {
      const __m512i there_c = _mm512_loadu_si512(columns[c]->there + w);
      const __m512i minus_c = _mm512_loadu_si512(columns[c]->minus + w);
      for (int64_t r = 0; r < kRows; ++r) {
        const __m512i common = _mm512_and_si512(there[r], there_c);
        const __m512i differ =  // common & (minus_r ^ minus_c)
            _mm512_ternarylogic_epi64(common, minus[r], minus_c, 0x60);
        both[r][c] = _mm512_add_epi64(both[r][c], _mm512_popcnt_epi64(common));
        apart[r][c] = _mm512_add_epi64(apart[r][c], _mm512_popcnt_epi64(differ));
      }
    }
  }
  // Eight registers to eight sums: pairs of lanes, then of quarters, side by side.
  __m512i quarters[4];
  for (int64_t i = 0; i < 4; ++i) {
    __m512i x[2];
    for (int64_t j = 0; j < 2; ++j) {
      const int64_t at = 2 * i + j;
      x[j] = _mm512_sub_epi64(both[at / kColumns][at % kColumns],
                              _mm512_slli_epi64(apart[at / kColumns][at % kColumns], 1));
    }
    quarters[i] =
        _mm512_add_epi64(_mm512_unpacklo_epi64(x[0], x[1]), _mm512_unpackhi_epi64(x[0], x[1]));
  }
  const auto halve = [](__m512i a, __m512i b) {
    return _mm512_add_epi64(_mm512_shuffle_i64x2(a, b, 0x88), _mm512_shuffle_i64x2(a, b, 0xdd));
  };
  _mm512_storeu_si512(count,
                      halve(halve(quarters[0], quarters[1]), halve(quarters[2], quarters[3])));
}

#elif defined(__AVX2__)
constexpr double kWordNs = 0.7;

// Bits of every byte, by two table look-ups of four bits each.
__m256i bits_of_bytes(__m256i x) {
  const __m256i table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i low = _mm256_set1_epi8(15);
  return _mm256_add_epi8(
      _mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
      _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
}

__m256i load(const uint64_t* words) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
}

int64_t agree_pair(const Planes& a, const Planes& b, int64_t words) {
  constexpr int64_t kGroup = 4 * 16;  // words: a byte counts up to 16*8 bits before it is added up
  const __m256i zero = _mm256_setzero_si256();
  __m256i both = zero, apart = zero;
  for (int64_t group = 0; group < words; group += kGroup) {
    const int64_t end = group + kGroup < words ? group + kGroup : words;
    __m256i both_bytes = zero, apart_bytes = zero;
    for (int64_t w = group; w < end; w += 4) {
      const __m256i common = _mm256_and_si256(load(a.there + w), load(b.there + w));
      const __m256i signs = _mm256_xor_si256(load(a.minus + w), load(b.minus + w));
      both_bytes = _mm256_add_epi8(both_bytes, bits_of_bytes(common));
      apart_bytes = _mm256_add_epi8(apart_bytes, bits_of_bytes(_mm256_and_si256(common, signs)));
    }
    both = _mm256_add_epi64(both, _mm256_sad_epu8(both_bytes, zero));
    apart = _mm256_add_epi64(apart, _mm256_sad_epu8(apart_bytes, zero));
  }
  const __m256i lanes = _mm256_sub_epi64(both, _mm256_slli_epi64(apart, 1));
  int64_t sum[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sum), lanes);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

#else
constexpr double kWordNs = 2.5;

int64_t popcount(uint64_t x) {
#if defined(__aarch64__)
  return __builtin_popcountll(x);
#else  // in halves, quarters, bytes: it vectorises, a call of libgcc does not
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  x += x >> 8;
  x += x >> 16;
  x += x >> 32;
  return static_cast<int64_t>(x & 0x7f);
#endif
}

int64_t agree_pair(const Planes& a, const Planes& b, int64_t words) {
  int64_t both = 0, apart = 0;
  for (int64_t w = 0; w < words; ++w) {
    const uint64_t common = a.there[w] & b.there[w];
    both += popcount(common);
    apart += popcount(common & (a.minus[w] ^ b.minus[w]));
  }
  return both - 2 * apart;
}
#endif

#if !defined(__AVX512BW__)
void agree(const Planes* const* rows, const Planes* const* columns, int64_t words, int64_t* count) {
  for (int64_t r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kColumns; ++c)
      count[kColumns * r + c] = agree_pair(*rows[r], *columns[c], words);
}
#endif

// Step 5.
void meet(const PacketView& p, int64_t place, Span span, int64_t begin, const Lists& lists,
          int64_t* row) {
  const uint32_t packet = static_cast<uint32_t>(place) << 1;
  const float* value = p.value;
  const uint32_t* first = lists.first;
  uint32_t* next = lists.next;
  Met* met = lists.met;
  p.with_index([=](auto* index) {
    for (int64_t i = span.from; i < span.until; ++i) {
      const int64_t element = index[i] - begin;
      const uint32_t self = packet | sign_of(value[i]), end = next[element];
      for (uint32_t at = first[element]; at < end; ++at) {
        const uint32_t other = met[at];
        row[other >> 1] += 1 - 2 * static_cast<int64_t>((other ^ self) & 1);
      }
      met[end] = static_cast<Met>(self);
      next[element] = end + (end > 0);
    }
  });
}

void spread(const PacketView& p, Span span, int64_t begin, bool clear, float* x) {
  p.with_index([&, value = p.value](auto* index) {
    for (int64_t i = span.from; i < span.until; ++i) x[index[i] - begin] = clear ? 0.0f : value[i];
  });
}

double dot_entries(const PacketView& p, Span span, int64_t begin, const float* x) {
  return p.with_index([&, value = p.value](auto* index) {
    double lane[8] = {};
    for (int64_t i = span.from; i < span.until; ++i) {
      const int64_t place = index[i] - begin;
      lane[place & 7] += static_cast<double>(x[place]) * static_cast<double>(value[i]);
    }
    return add_lanes(lane);
  });
}

typedef float Floats __attribute__((vector_size(kNative / 2), aligned(4)));
typedef double Sums __attribute__((vector_size(kNative)));

// Some of the lanes at a time, those that a vector has: so the sums stay in registers.
void dot_dense(const float* const* rows, const float* const* columns, int64_t n, double* dot) {
  constexpr int kWide = kNative / sizeof(double);
  const int64_t whole = n / kLanes * kLanes;
  double lane[kRows][kColumns][kLanes];
  for (int from = 0; from < kLanes; from += kWide) {
    Sums sums[kRows][kColumns] = {};
    const auto at = [&](const float* row, int64_t i) {
      return __builtin_convertvector(*reinterpret_cast<const Floats*>(row + i + from), Sums);
    };
    for (int64_t i = 0; i < whole; i += kLanes) {
      Sums x[kRows];
      for (int64_t r = 0; r < kRows; ++r) x[r] = at(rows[r], i);
      for (int64_t c = 0; c < kColumns; ++c) {
        const Sums y = at(columns[c], i);
        for (int64_t r = 0; r < kRows; ++r) sums[r][c] += x[r] * y;
      }
    }
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < kColumns; ++c)
        std::memcpy(&lane[r][c][from], &sums[r][c], sizeof(Sums));
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kColumns; ++c) {
      for (int64_t j = whole; j < n; ++j)
        lane[r][c][j % kLanes] +=
            static_cast<double>(rows[r][j]) * static_cast<double>(columns[c][j]);
      dot[kColumns * r + c] = add_lanes(lane[r][c]);
    }
  }
}

}  // namespace

const GramTable gram_table = {kWordNs, tally, mark, agree, meet, spread, dot_entries, dot_dense};

}  // namespace gcext::GCEXT_ISA
