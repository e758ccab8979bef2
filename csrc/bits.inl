// bits: the bodies, compiled once per instruction set. See bits.h for the layout.
#include <cstdint>
#include <cstring>

#include "bits.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gcext::GCEXT_ISA {
namespace {

inline uint64_t load64(const uint8_t* p) {
  uint64_t x;
  memcpy(&x, p, 8);
  return x;
}

inline void store64(uint8_t* p, uint64_t x) { memcpy(p, &x, 8); }

#if defined(__BMI2__)
constexpr uint64_t kBytes = 0x0101010101010101u;
constexpr uint64_t kHalves = 0x0001000100010001u;
#endif

// Values [from, n), one by one, into a 64-bit window. `from` is a multiple of 8.
void pack_plain(const uint32_t* value, int64_t from, int64_t n, int b, uint8_t* out) {
  uint8_t* p = out + from / 8 * b;
  uint64_t window = 0;
  int fill = 0;
  for (int64_t i = from; i < n; ++i) {
    window |= static_cast<uint64_t>(value[i]) << fill;
    fill += b;
    if (fill >= 64) {
      store64(p, window);
      p += 8;
      fill -= 64;
      // b - fill bits of this value are out already; b > fill here, and b - fill < 64.
      window = static_cast<uint64_t>(value[i]) >> (b - fill);
    }
  }
  for (; fill > 0; fill -= 8, window >>= 8) *p++ = static_cast<uint8_t>(window);
}

void unpack_plain(const uint8_t* in, int64_t from, int64_t n, int b, uint32_t* value) {
  const uint64_t mask = (uint64_t{1} << b) - 1;
  for (int64_t i = from; i < n; ++i) {
    const int64_t bit = i * b;  // 7 + 32 bits always fit the 64-bit window
    value[i] = static_cast<uint32_t>(load64(in + (bit >> 3)) >> (bit & 7) & mask);
  }
}

void pack(const uint32_t* value, int64_t n, int b, uint8_t* out) {
  if (b == 0) return;
  int64_t i = 0;
#if defined(__BMI2__)
  // Eight values a step. A store of 8 bytes may run over the b bytes that are owned, so the last
  // steps are left to pack_plain: `safe` values end at least 16 bytes before the plane does.
  const int64_t safe = n - 8 * (16 / b + 2);
  if (b <= 8) {
    const uint64_t mask = kBytes * ((1u << b) - 1);
    for (; i < safe; i += 8) {
      uint8_t low[8];
      for (int j = 0; j < 8; ++j) low[j] = static_cast<uint8_t>(value[i + j]);
      store64(out + i / 8 * b, _pext_u64(load64(low), mask));
    }
  } else if (b <= 16) {
    const uint64_t mask = kHalves * ((1u << b) - 1);
    for (; i < safe; i += 8) {
      uint16_t low[8];
      for (int j = 0; j < 8; ++j) low[j] = static_cast<uint16_t>(value[i + j]);
      uint64_t half[2];
      memcpy(half, low, 16);
      const uint64_t x = _pext_u64(half[0], mask), y = _pext_u64(half[1], mask);
      uint8_t* p = out + i / 8 * b;
      if (b == 16) {
        store64(p, x);
        store64(p + 8, y);
      } else {
        store64(p, x | y << (4 * b));
        store64(p + 8, y >> (64 - 4 * b));
      }
    }
  }
#endif
  pack_plain(value, i, n, b, out);
}

void unpack(const uint8_t* in, int64_t n, int b, uint32_t* value) {
  if (b == 0) {
    memset(value, 0, static_cast<size_t>(n) * 4);
    return;
  }
  int64_t i = 0;
#if defined(__BMI2__)
  if (b <= 8) {
    const uint64_t mask = kBytes * ((1u << b) - 1);
    for (; i + 8 <= n; i += 8) {
      const uint64_t x = _pdep_u64(load64(in + i / 8 * b), mask);
      const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(x)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(value + i), wide);
    }
  } else if (b <= 16) {
    const uint64_t mask = kHalves * ((1u << b) - 1);
    for (; i + 8 <= n; i += 8) {
      const uint8_t* p = in + i / 8 * b;
      const uint64_t x = _pdep_u64(load64(p), mask);
      const uint64_t y = _pdep_u64(load64(p + b / 2) >> (4 * b & 7), mask);
      const __m128i both = _mm_set_epi64x(static_cast<long long>(y), static_cast<long long>(x));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(value + i), _mm256_cvtepu16_epi32(both));
    }
  }
#endif
  unpack_plain(in, i, n, b, value);
}

void pack_signs(const float* value, int64_t n, uint8_t* out) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const uint16_t sixteen = _mm512_movepi32_mask(_mm512_loadu_si512(value + i));
    memcpy(out + i / 8, &sixteen, 2);
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8)
    out[i / 8] = static_cast<uint8_t>(_mm256_movemask_ps(_mm256_loadu_ps(value + i)));
#elif defined(__SSE2__)
  for (; i + 8 <= n; i += 8) {
    const int low = _mm_movemask_ps(_mm_loadu_ps(value + i));
    const int high = _mm_movemask_ps(_mm_loadu_ps(value + i + 4));
    out[i / 8] = static_cast<uint8_t>(low | high << 4);
  }
#endif
  for (; i < n; i += 8) {
    unsigned eight = 0;
    for (int64_t j = i; j < n && j < i + 8; ++j) {
      uint32_t word;
      memcpy(&word, value + j, 4);
      eight |= word >> 31 << (j - i);
    }
    out[i / 8] = static_cast<uint8_t>(eight);
  }
}

void unpack_signs(const uint8_t* in, int64_t n, float scale, float* value) {
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512 plus = _mm512_set1_ps(scale), minus = _mm512_set1_ps(-scale);
  for (; i + 16 <= n; i += 16) {
    uint16_t sixteen;
    memcpy(&sixteen, in + i / 8, 2);
    _mm512_storeu_ps(value + i, _mm512_mask_blend_ps(sixteen, plus, minus));
  }
#elif defined(__AVX2__)
  const __m256 plus = _mm256_set1_ps(scale);
  const __m256i to_top = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  const __m256i top = _mm256_set1_epi32(static_cast<int>(0x80000000u));
  for (; i + 8 <= n; i += 8) {
    const __m256i eight = _mm256_sllv_epi32(_mm256_set1_epi32(in[i / 8]), to_top);
    const __m256 sign = _mm256_castsi256_ps(_mm256_and_si256(eight, top));
    _mm256_storeu_ps(value + i, _mm256_xor_ps(plus, sign));
  }
#endif
  uint32_t word;
  memcpy(&word, &scale, 4);
  for (; i < n; ++i) {
    const uint32_t signed_word = word ^ static_cast<uint32_t>(in[i >> 3] >> (i & 7) & 1) << 31;
    memcpy(value + i, &signed_word, 4);
  }
}

}  // namespace

const BitsTable bits_table = {pack, unpack, pack_signs, unpack_signs};

}  // namespace gcext::GCEXT_ISA
