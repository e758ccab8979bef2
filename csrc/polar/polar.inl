// polar: the bodies, compiled once per instruction set. See polar.h for the formulas.
#include <cstring>

#include "polar_row.h"

namespace gcext::GCEXT_ISA {
namespace {

// In place, so a butterfly at a time: word[i] ^= word[i + half] within each block of 2*half.
inline void butterfly(uint64_t* word, int64_t n, int64_t half) {
  for (int64_t start = 0; start < n; start += 2 * half) {
    for (int64_t i = start; i < start + half; ++i) word[i] ^= word[i + half];
  }
}

inline void eight(uint64_t* w) {
  uint64_t a = w[0], b = w[1], c = w[2], d = w[3], e = w[4], f = w[5], g = w[6], h = w[7];
  a ^= b, c ^= d, e ^= f, g ^= h;
  a ^= c, b ^= d, e ^= g, f ^= h;
  w[0] = a ^ e, w[1] = b ^ f, w[2] = c ^ g, w[3] = d ^ h;
  w[4] = e, w[5] = f, w[6] = g, w[7] = h;
}

void transform(uint64_t* word, int64_t n) {
  if (n < 8) {
    for (int64_t half = 1; half < n; half *= 2) butterfly(word, n, half);
    return;
  }
  for (int64_t i = 0; i < n; i += 8) eight(word + i);
  // Two stages a pass from here on; a factor of two that is left goes first.
  int64_t half = 8;
  if (__builtin_ctzll(static_cast<uint64_t>(n)) % 2 == 0) {
    butterfly(word, n, half);
    half = 16;
  }
  for (; half < n; half *= 4) {
    for (int64_t start = 0; start < n; start += 4 * half) {
      uint64_t *a = word + start, *b = a + half, *c = b + half, *d = c + half;
      for (int64_t i = 0; i < half; ++i) {
        const uint64_t x = b[i] ^ d[i], y = c[i] ^ d[i];
        a[i] ^= b[i] ^ y;
        b[i] = x;
        c[i] = y;
      }
    }
  }
}

// The root's rows: LLRs, or signs that stand for them.
struct FromLlr {
  const int8_t* llr;
  Row operator()(int64_t i) const { return Row::load(llr + kPolarLanes * i); }
};
struct FromSigns {
  const uint64_t* word;
  int8_t weight;
  Row operator()(int64_t i) const { return Row::of_signs(word[i], weight); }
};

template <bool kLinear, class From>
inline void descend(PolarStep step, const From& from, int64_t half, int correction,
                    const uint64_t* u, int8_t* to) {
  if (step == PolarStep::first) {
    for (int64_t i = 0; i < half; ++i) {
      first<kLinear>(from(i), from(half + i), correction).store(to + kPolarLanes * i);
    }
  } else if (step == PolarStep::second) {
    for (int64_t i = 0; i < half; ++i) {
      second(from(i), from(half + i), u[i]).store(to + kPolarLanes * i);
    }
  } else {
    for (int64_t i = 0; i < half; ++i) {
      sum(from(i), from(half + i)).store(to + kPolarLanes * i);
    }
  }
}

constexpr int64_t kCacheLine = 64;

template <bool kLinear>
void run(const PolarProgram& program, const uint64_t* source, int8_t weight, int correction,
         PolarWork work, uint64_t* message, PolarAhead ahead) {
  const int64_t share = ahead.bytes / program.count / kCacheLine * kCacheLine + kCacheLine;
  const char* const end = ahead.at + ahead.bytes;
  for (int64_t at = 0; at < program.count; ++at) {
    for (const char* stop = end - ahead.at < share ? end : ahead.at + share; ahead.at < stop;
         ahead.at += kCacheLine) {
      __builtin_prefetch(ahead.at, 0, 2);
    }
    const PolarOp op = program.op[at];
    const int64_t rows = int64_t{1} << op.level, half = rows / 2;
    int8_t* llr = work.llr + kPolarLanes * rows;
    uint64_t* word = work.codeword + op.at;
    switch (op.step) {
      case PolarStep::first:
      case PolarStep::second:
      case PolarStep::sum: {
        int8_t* to = work.llr + kPolarLanes * half;
        if (source != nullptr && op.level == program.levels) {
          descend<kLinear>(op.step, FromSigns{source, weight}, half, correction, word, to);
        } else {
          descend<kLinear>(op.step, FromLlr{llr}, half, correction, word, to);
        }
        break;
      }
      case PolarStep::join:
        for (int64_t i = 0; i < half; ++i) word[i] ^= word[half + i];
        break;
      case PolarStep::repeat:
        std::memcpy(word, word + half, static_cast<size_t>(half) * sizeof(uint64_t));
        break;
      case PolarStep::zero:
        std::memset(word, 0, static_cast<size_t>(rows) * sizeof(uint64_t));
        break;
      case PolarStep::sign:
        for (int64_t i = 0; i < rows; ++i) {
          message[i] = word[i] = Row::load(llr + kPolarLanes * i).signs();
        }
        transform(message, rows);
        message += rows;
        break;
      case PolarStep::last: {
        // Down the second halves, each the sum of its parent's: the same clamps in the same order
        // as in the recursion.
        for (int64_t n = half; n > 0; n /= 2) {
          for (int64_t i = 0; i < n; ++i) {
            sum(Row::load(llr + kPolarLanes * i), Row::load(llr + kPolarLanes * (n + i)))
                .store(llr + kPolarLanes * i);
          }
        }
        const uint64_t u = Row::load(llr).signs();
        for (int64_t i = 0; i < rows; ++i) word[i] = u;
        *message++ = u;
        break;
      }
    }
  }
}

void encode(const PolarProgram& program, const uint64_t* source, int8_t weight, int correction,
            PolarWork work, uint64_t* message, PolarAhead ahead) {
  if (correction > 0) {
    run<true>(program, source, weight, correction, work, message, ahead);
  } else {
    run<false>(program, source, weight, 0, work, message, ahead);
  }
}

// As many floats as a register has, and as many registers as a row takes.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));

// The factor is 1 for all but the largest and least values.
template <bool kScaled>
void add_magnitudes(const float* value, int64_t rows, float factor, float* sum) {
  Floats total[kPolarLanes / kWidth] = {};
  for (int64_t i = 0; i < rows; ++i, value += kPolarLanes) {
    for (int j = 0; j < kPolarLanes / kWidth; ++j) {
      Floats x = *reinterpret_cast<const Floats*>(value + kWidth * j);
      if (kScaled) x *= factor;
      total[j] += (Floats)((Words)x & 0x7fffffffu);
    }
  }
  std::memcpy(sum, total, sizeof total);
}

void magnitudes(const float* value, int64_t rows, float factor, float* sum) {
  if (factor == 1.0f) {
    add_magnitudes<false>(value, rows, factor, sum);
  } else {
    add_magnitudes<true>(value, rows, factor, sum);
  }
}

// Only what is too large is clamped before the conversion: what is too small becomes INT_MIN there,
// and the packing saturates it. Packing works within 128-bit parts; a permutation restores the
// order.
void quantise(const float* value, int64_t rows, float factor, float scale, int8_t* llr) {
#if defined(__AVX512F__)
  if (factor == 1.0f) {
    const __m512 s = _mm512_set1_ps(scale), high = _mm512_set1_ps(127.0f);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t i = 0; i < rows; ++i, value += kPolarLanes, llr += kPolarLanes) {
      __m512i whole[4];
      for (int j = 0; j < 4; ++j) {
        const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(value + 16 * j), s);
        whole[j] = _mm512_cvtps_epi32(_mm512_min_ps(x, high));
      }
      const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(whole[0], whole[1]),
                                               _mm512_packs_epi32(whole[2], whole[3]));
      clamp(_mm512_permutexvar_epi32(order, bytes)).store(llr);
    }
    return;
  }
#elif defined(__AVX2__)
  if (factor == 1.0f) {
    const __m256 s = _mm256_set1_ps(scale), high = _mm256_set1_ps(127.0f);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t i = 0; i < 2 * rows; ++i, value += 32, llr += 32) {
      __m256i whole[4];
      for (int j = 0; j < 4; ++j) {
        const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(value + 8 * j), s);
        whole[j] = _mm256_cvtps_epi32(_mm256_min_ps(x, high));
      }
      const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                               _mm256_packs_epi32(whole[2], whole[3]));
      _mm256_store_si256(reinterpret_cast<__m256i*>(llr),
                         clamp(_mm256_permutevar8x32_epi32(bytes, order)));
    }
    return;
  }
#endif
  for (int64_t i = 0; i < rows * kPolarLanes; ++i) {
    llr[i] = polar_quantised((value[i] * factor) * scale);
  }
}

void pack(const uint8_t* symbol, int64_t n, uint8_t* packed) {
  for (int64_t i = 0; i < n / 8; ++i) {
    uint64_t x;
    std::memcpy(&x, symbol + 8 * i, 8);
    x = (((x & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | x) >> 7 & 0x0101010101010101u;
    packed[i] = static_cast<uint8_t>(x * 0x0102040810204080u >> 56);
  }
}

void unpack(const uint8_t* packed, int64_t n, uint8_t* symbol) {
  for (int64_t i = 0; i < n / 8; ++i) {
    const uint64_t bits = packed[i] * 0x0101010101010101u & 0x8040201008040201u;
    const uint64_t x = (((bits & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | bits) >> 7;
    const uint64_t ones = x & 0x0101010101010101u;
    std::memcpy(symbol + 8 * i, &ones, 8);
  }
}

}  // namespace

const PolarTable polar_table = {encode, transform, magnitudes, quantise, pack, unpack};

}  // namespace gcext::GCEXT_ISA
