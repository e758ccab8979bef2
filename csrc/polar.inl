// polar: the bodies, compiled once per instruction set. See polar.h for the formulas.
#include <cstdint>
#include <cstring>

#include "polar.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gcext {
namespace GCEXT_ISA {
namespace {

// Row: the LLRs of one symbol in every lane. Row::signs() has a one where the LLR is negative.
#if defined(__AVX512BW__)

struct Row {
  __m512i x;
  static Row load(const int8_t* p) { return {_mm512_load_si512(p)}; }
  static Row of_signs(uint64_t s, int8_t weight) {
    return {_mm512_mask_blend_epi8(s, _mm512_set1_epi8(weight),
                                   _mm512_set1_epi8(static_cast<int8_t>(-weight)))};
  }
  void store(int8_t* p) const { _mm512_store_si512(p, x); }
  uint64_t signs() const { return _mm512_movepi8_mask(x); }
};

template <bool kLinear>
inline Row first(Row a, Row b, int correction) {
  const __m512i p = _mm512_abs_epi8(a.x), q = _mm512_abs_epi8(b.x);
  __m512i m = _mm512_min_epu8(p, q);
  if (kLinear) {
    const __m512i c = _mm512_set1_epi8(static_cast<int8_t>(correction));
    const __m512i apart = _mm512_sub_epi8(_mm512_max_epu8(p, q), m);
    const __m512i e =
        _mm512_sub_epi8(_mm512_subs_epu8(c, apart), _mm512_subs_epu8(c, _mm512_add_epi8(p, q)));
    const __m512i rounded = _mm512_srli_epi16(_mm512_add_epi8(e, _mm512_set1_epi8(2)), 2);
    m = _mm512_sub_epi8(m, _mm512_and_si512(rounded, _mm512_set1_epi8(0x3f)));
  }
  const __mmask64 negative = _mm512_movepi8_mask(_mm512_xor_si512(a.x, b.x));
  return {_mm512_mask_sub_epi8(m, negative, _mm512_setzero_si512(), m)};
}

inline Row clamp(__m512i sum) { return {_mm512_max_epi8(sum, _mm512_set1_epi8(-127))}; }

inline Row second(Row a, Row b, uint64_t u) {
  // b - a never leaves [-254, 254], so both branches saturate as b + (-a) would.
  const __m512i sum = _mm512_adds_epi8(b.x, a.x);
  return clamp(_mm512_mask_subs_epi8(sum, u, b.x, a.x));
}

inline Row sum(Row a, Row b) { return clamp(_mm512_adds_epi8(b.x, a.x)); }

#elif defined(__AVX2__)

struct Row {
  __m256i x, y;
  static Row load(const int8_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  void store(int8_t* p) const {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), x);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), y);
  }
  uint64_t signs() const {
    return static_cast<uint32_t>(_mm256_movemask_epi8(x)) |
           static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(y))) << 32;
  }
  static Row of_signs(uint64_t s, int8_t weight);
};

// -1 in the bytes whose bit is set.
inline __m256i mask_of(uint32_t u) {
  const __m256i byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2,
                                        2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(u)), byte);
  return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
}

inline __m256i negate(__m256i x, __m256i mask) {
  return _mm256_sub_epi8(_mm256_xor_si256(x, mask), mask);
}

inline Row Row::of_signs(uint64_t s, int8_t weight) {
  const __m256i w = _mm256_set1_epi8(weight);
  return {negate(w, mask_of(static_cast<uint32_t>(s))),
          negate(w, mask_of(static_cast<uint32_t>(s >> 32)))};
}

template <bool kLinear>
inline __m256i first(__m256i a, __m256i b, int correction) {
  const __m256i p = _mm256_abs_epi8(a), q = _mm256_abs_epi8(b);
  __m256i m = _mm256_min_epu8(p, q);
  if (kLinear) {
    const __m256i c = _mm256_set1_epi8(static_cast<int8_t>(correction));
    const __m256i apart = _mm256_sub_epi8(_mm256_max_epu8(p, q), m);
    const __m256i e =
        _mm256_sub_epi8(_mm256_subs_epu8(c, apart), _mm256_subs_epu8(c, _mm256_add_epi8(p, q)));
    const __m256i rounded = _mm256_srli_epi16(_mm256_add_epi8(e, _mm256_set1_epi8(2)), 2);
    m = _mm256_sub_epi8(m, _mm256_and_si256(rounded, _mm256_set1_epi8(0x3f)));
  }
  // The sign of a*b, and not 0: where a or b is 0, m is.
  const __m256i sign = _mm256_or_si256(_mm256_xor_si256(a, b), _mm256_set1_epi8(1));
  return _mm256_sign_epi8(m, sign);
}

template <bool kLinear>
inline Row first(Row a, Row b, int correction) {
  return {first<kLinear>(a.x, b.x, correction), first<kLinear>(a.y, b.y, correction)};
}

inline __m256i clamp(__m256i sum) { return _mm256_max_epi8(sum, _mm256_set1_epi8(-127)); }

inline Row sum(Row a, Row b) {
  return {clamp(_mm256_adds_epi8(b.x, a.x)), clamp(_mm256_adds_epi8(b.y, a.y))};
}

inline Row second(Row a, Row b, uint64_t u) {
  return sum({negate(a.x, mask_of(static_cast<uint32_t>(u))),
              negate(a.y, mask_of(static_cast<uint32_t>(u >> 32)))},
             b);
}

#else

struct Row {
  int8_t x[kPolarLanes];
  static Row load(const int8_t* p) {
    Row r;
    std::memcpy(r.x, p, sizeof r.x);
    return r;
  }
  static Row of_signs(uint64_t s, int8_t weight);
  void store(int8_t* p) const { std::memcpy(p, x, sizeof x); }
  uint64_t signs() const {
    uint64_t s = 0;
    for (int j = 0; j < 8; ++j) {
      uint64_t eight;
      std::memcpy(&eight, x + 8 * j, 8);
      // The sign bits of eight bytes into the top byte, in order.
      s |= (((eight >> 7) & 0x0101010101010101u) * 0x0102040810204080u >> 56) << (8 * j);
    }
    return s;
  }
};

// -1 in the bytes whose bit is set.
inline Row mask_of(uint64_t u) {
  Row r;
  for (int j = 0; j < 8; ++j) {
    const uint64_t bits = ((u >> (8 * j)) & 0xff) * 0x0101010101010101u & 0x8040201008040201u;
    // A set bit carries into the byte's top bit, which then becomes 0 or 1, and that 0 or 255.
    const uint64_t ones = (((bits & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | bits) >> 7;
    const uint64_t mask = (ones & 0x0101010101010101u) * 255;
    std::memcpy(r.x + 8 * j, &mask, 8);
  }
  return r;
}

inline Row Row::of_signs(uint64_t s, int8_t weight) {
  Row r = mask_of(s);
  for (int8_t& x : r.x) x = static_cast<int8_t>((weight ^ x) - x);
  return r;
}

template <bool kLinear>
inline Row first(const Row& a, const Row& b, int correction) {
  Row r;
  const uint8_t c = static_cast<uint8_t>(correction);
  for (int j = 0; j < kPolarLanes; ++j) {
    const int8_t s = static_cast<int8_t>(a.x[j] >> 7), t = static_cast<int8_t>(b.x[j] >> 7);
    const uint8_t p = static_cast<uint8_t>((a.x[j] ^ s) - s);
    const uint8_t q = static_cast<uint8_t>((b.x[j] ^ t) - t);
    uint8_t m = p < q ? p : q;
    if (kLinear) {
      const uint8_t apart = static_cast<uint8_t>((p < q ? q : p) - m);
      const uint8_t both = static_cast<uint8_t>(p + q);
      const uint8_t near = static_cast<uint8_t>(c > apart ? c - apart : 0);
      const uint8_t far = static_cast<uint8_t>(c > both ? c - both : 0);
      m = static_cast<uint8_t>(m - ((near - far + 2) >> 2));
    }
    const int8_t negative = static_cast<int8_t>(s ^ t);
    r.x[j] = static_cast<int8_t>((m ^ negative) - negative);
  }
  return r;
}

inline Row sum(const Row& a, const Row& b) {
  Row r;
  for (int j = 0; j < kPolarLanes; ++j) {
    int16_t s = static_cast<int16_t>(a.x[j] + b.x[j]);
    s = s > 127 ? 127 : s;
    r.x[j] = static_cast<int8_t>(s < -127 ? -127 : s);
  }
  return r;
}

inline Row second(const Row& a, const Row& b, uint64_t u) {
  const Row mask = mask_of(u);
  Row turned;
  for (int j = 0; j < kPolarLanes; ++j) {
    turned.x[j] = static_cast<int8_t>((a.x[j] ^ mask.x[j]) - mask.x[j]);
  }
  return sum(turned, b);
}

#endif

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

template <bool kLinear>
void run(const PolarProgram& program, const uint64_t* source, int8_t weight, int correction,
         PolarWork work, uint64_t* message) {
  for (int64_t at = 0; at < program.count; ++at) {
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
            PolarWork work, uint64_t* message) {
  if (correction > 0) {
    run<true>(program, source, weight, correction, work, message);
  } else {
    run<false>(program, source, weight, 0, work, message);
  }
}

// What the plain loops below say, sixteen or eight values at a time.
void magnitudes(const float* value, int64_t rows, float factor, float* sum) {
#if defined(__AVX512F__)
  __m512 total[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(),
                     _mm512_setzero_ps()};
  for (int64_t i = 0; i < rows; ++i, value += kPolarLanes) {
    for (int j = 0; j < 4; ++j) {
      const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(value + 16 * j), _mm512_set1_ps(factor));
      total[j] = _mm512_add_ps(total[j], _mm512_abs_ps(x));
    }
  }
  for (int j = 0; j < 4; ++j) _mm512_storeu_ps(sum + 16 * j, total[j]);
#elif defined(__AVX2__)
  __m256 total[8];
  for (__m256& t : total) t = _mm256_setzero_ps();
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int64_t i = 0; i < rows; ++i, value += kPolarLanes) {
    for (int j = 0; j < 8; ++j) {
      const __m256 x = _mm256_mul_ps(_mm256_loadu_ps(value + 8 * j), _mm256_set1_ps(factor));
      total[j] = _mm256_add_ps(total[j], _mm256_andnot_ps(sign, x));
    }
  }
  for (int j = 0; j < 8; ++j) _mm256_storeu_ps(sum + 8 * j, total[j]);
#else
  float total[kPolarLanes] = {};
  for (int64_t i = 0; i < rows; ++i, value += kPolarLanes) {
    for (int j = 0; j < kPolarLanes; ++j) total[j] += __builtin_fabsf(value[j] * factor);
  }
  std::memcpy(sum, total, sizeof total);
#endif
}

void quantise(const float* value, int64_t n, float factor, float scale, int8_t* llr) {
#if defined(__AVX512F__)
  const __m512 f = _mm512_set1_ps(factor), s = _mm512_set1_ps(scale);
  const __m512 high = _mm512_set1_ps(127.0f), low = _mm512_set1_ps(-127.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(value + i), f), s);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(x, high), low));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(llr + i), _mm512_cvtepi32_epi8(whole));
  }
#elif defined(__AVX2__)
  const __m256 f = _mm256_set1_ps(factor), s = _mm256_set1_ps(scale);
  const __m256 high = _mm256_set1_ps(127.0f), low = _mm256_set1_ps(-127.0f);
  // Packing works within 128-bit halves; this puts the groups of four back in order.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t i = 0; i < n; i += 32) {
    __m256i whole[4];
    for (int j = 0; j < 4; ++j) {
      const __m256 x = _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(value + i + 8 * j), f), s);
      whole[j] = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(x, high), low));
    }
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]),
                                             _mm256_packs_epi32(whole[2], whole[3]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(llr + i),
                        _mm256_permutevar8x32_epi32(bytes, order));
  }
#else
  for (int64_t i = 0; i < n; ++i) {
    float x = (value[i] * factor) * scale;
    x = x > 127.0f ? 127.0f : x;
    x = x < -127.0f ? -127.0f : x;
    // 1.5 * 2^23: the addition rounds to the nearest integer, ties to even, into the low bits.
    const float shifted = x + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    llr[i] = static_cast<int8_t>(bits);
  }
#endif
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

}  // namespace GCEXT_ISA
}  // namespace gcext
