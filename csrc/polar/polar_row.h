// polar: a row of LLRs, one symbol in every lane, and the rules f and g of polar.h on rows, for the
// instruction set that this is compiled for. Part of polar.inl.
#pragma once

#include <cstring>

#include "polar.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gcext::GCEXT_ISA {
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

}  // namespace
}  // namespace gcext::GCEXT_ISA
