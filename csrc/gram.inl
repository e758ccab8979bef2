// gram: the bodies, compiled once per instruction set. See gram.h for the formulas.
#include <cstdint>
#include <cstring>

#include "gram.h"

#if defined(__AVX512BW__)
#include <immintrin.h>
#endif

namespace gcext {
namespace GCEXT_ISA {
namespace {

uint64_t sign_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits >> 31;
}

// Straight into memory: words held in registers until they are full mispredict their end, and took
// up to three times as long between 1 and 10 % of entries.
template <class Int>
int64_t mark_at(const Int* index, const float* value, int64_t at, int64_t k, int64_t begin,
                Planes* planes) {
  for (; at < k; ++at) {
    const int64_t place = index[at] - begin;
    if (place >= kGramTile) break;
    planes->there[place >> 6] |= uint64_t{1} << (place & 63);
    planes->minus[place >> 6] |= sign_of(value[at]) << (place & 63);
  }
  return at;
}

int64_t mark(const PacketView& p, int64_t at, int64_t begin, Planes* planes) {
  return p.wide ? mark_at(p.index64(), p.value, at, p.k, begin, planes)
                : mark_at(p.index32(), p.value, at, p.k, begin, planes);
}

// Where look_up, 1.1 ns an entry, takes as long as agree: 85, 150 and 500 ns a tile on one core of
// a Xeon with AVX-512.
#if defined(__AVX512BW__)
constexpr int64_t kFew = 64;
#elif defined(__POPCNT__) || defined(__aarch64__)
constexpr int64_t kFew = 128;
#else
constexpr int64_t kFew = 448;
#endif

#if defined(__AVX512BW__)

// Bits of every byte, by two table look-ups of four bits each.
__m512i bits_of_bytes(__m512i x) {
  const __m512i table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m512i low = _mm512_set1_epi8(15);
  return _mm512_add_epi8(
      _mm512_shuffle_epi8(table, _mm512_and_si512(x, low)),
      _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), low)));
}

int64_t agree(const Planes& a, const Planes& b) {
  constexpr int64_t kWords = 8;       // of a register
  constexpr int64_t kRegisters = 16;  // a byte counts up to 16*8 bits before it is added up
  static_assert(kGramWords % (kWords * kRegisters) == 0, "whole groups of registers");
  const __m512i zero = _mm512_setzero_si512();
  __m512i both = zero, apart = zero;
  for (int64_t group = 0; group < kGramWords; group += kWords * kRegisters) {
    __m512i both_bytes = zero, apart_bytes = zero;
    for (int64_t r = 0; r < kRegisters; ++r) {
      const int64_t w = group + kWords * r;
      const __m512i common =
          _mm512_and_si512(_mm512_loadu_si512(a.there + w), _mm512_loadu_si512(b.there + w));
      const __m512i signs =
          _mm512_xor_si512(_mm512_loadu_si512(a.minus + w), _mm512_loadu_si512(b.minus + w));
      both_bytes = _mm512_add_epi8(both_bytes, bits_of_bytes(common));
      apart_bytes = _mm512_add_epi8(apart_bytes, bits_of_bytes(_mm512_and_si512(common, signs)));
    }
    both = _mm512_add_epi64(both, _mm512_sad_epu8(both_bytes, zero));
    apart = _mm512_add_epi64(apart, _mm512_sad_epu8(apart_bytes, zero));
  }
  return _mm512_reduce_add_epi64(_mm512_sub_epi64(both, _mm512_slli_epi64(apart, 1)));
}

#else

int64_t popcount(uint64_t x) {
#if defined(__POPCNT__) || defined(__aarch64__)
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

int64_t agree(const Planes& a, const Planes& b) {
  int64_t both = 0, apart = 0;
  for (int64_t w = 0; w < kGramWords; ++w) {
    const uint64_t common = a.there[w] & b.there[w];
    both += popcount(common);
    apart += popcount(common & (a.minus[w] ^ b.minus[w]));
  }
  return both - 2 * apart;
}

#endif

template <class Int>
int64_t look_up_at(const Int* index, const float* value, int64_t from, int64_t until, int64_t begin,
                   const Planes& planes) {
  int64_t count = 0;
  for (int64_t i = from; i < until; ++i) {
    const int64_t place = index[i] - begin;
    const uint64_t there = planes.there[place >> 6] >> (place & 63) & 1;
    const uint64_t minus = planes.minus[place >> 6] >> (place & 63) & 1;
    const uint64_t apart = there & (minus ^ sign_of(value[i]));
    count += static_cast<int64_t>(there - 2 * apart);
  }
  return count;
}

int64_t look_up(const PacketView& p, int64_t from, int64_t until, int64_t begin,
                const Planes& planes) {
  return p.wide ? look_up_at(p.index64(), p.value, from, until, begin, planes)
                : look_up_at(p.index32(), p.value, from, until, begin, planes);
}

template <class Int>
void spread_at(const Int* index, const float* value, int64_t from, int64_t until, int64_t begin,
               bool clear, float* x) {
  for (int64_t i = from; i < until; ++i) x[index[i] - begin] = clear ? 0.0f : value[i];
}

void spread(const PacketView& p, int64_t from, int64_t until, int64_t begin, bool clear, float* x) {
  if (p.wide) {
    spread_at(p.index64(), p.value, from, until, begin, clear, x);
  } else {
    spread_at(p.index32(), p.value, from, until, begin, clear, x);
  }
}

double add_lanes(const double* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

template <class Int>
double dot_entries_at(const Int* index, const float* value, int64_t from, int64_t until,
                      int64_t begin, const float* x) {
  double lane[8] = {};
  for (int64_t i = from; i < until; ++i) {
    const int64_t place = index[i] - begin;
    lane[place & 7] += static_cast<double>(x[place]) * static_cast<double>(value[i]);
  }
  return add_lanes(lane);
}

double dot_entries(const PacketView& p, int64_t from, int64_t until, int64_t begin,
                   const float* x) {
  return p.wide ? dot_entries_at(p.index64(), p.value, from, until, begin, x)
                : dot_entries_at(p.index32(), p.value, from, until, begin, x);
}

double dot_dense(const float* x, const float* y, int64_t n) {
  double lane[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int64_t j = 0; j < 8; ++j)
      lane[j] += static_cast<double>(x[i + j]) * static_cast<double>(y[i + j]);
  for (; i < n; ++i) lane[i & 7] += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return add_lanes(lane);
}

}  // namespace

extern const GramTable gram_table;
const GramTable gram_table = {kFew, mark, agree, look_up, spread, dot_entries, dot_dense};

}  // namespace GCEXT_ISA
}  // namespace gcext
