// For bodies of one instruction set: 16-bit floats as float32.
#pragma once

#include "source.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gcext::GCEXT_ISA {
namespace {

// Elements that are widened at a time: with what they are added to they stay in the first cache.
constexpr int64_t kWidened = 1024;

inline void widen(const Halves& from, int64_t begin, int64_t n, float* __restrict to) {
  const Halves here{from.at + 2 * begin, from.brain};
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(here.at + 2 * i));
    const __m512 wide =
        from.brain ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16))
                   : _mm512_cvtph_ps(codes);
    _mm512_storeu_ps(to + i, wide);
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(here.at + 2 * i));
    const __m256 wide =
        from.brain ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16))
                   : _mm256_cvtph_ps(codes);
    _mm256_storeu_ps(to + i, wide);
  }
#endif
  for (; i < n; ++i) to[i] = here[i];
}

// Runs body(first, count, source) over pieces of the elements [begin, begin + n), the source being
// one of float32.
template <class Body>
void for_widened(const HostSource& source, int64_t begin, int64_t n, const Body& body) {
  alignas(64) float wide[kWidened];
  HostSource here = source;
  here.tensor = wide;
  here.half = {};
  for (int64_t at = 0; at < n; at += kWidened) {
    const int64_t count = n - at < kWidened ? n - at : kWidened;
    widen(source.half, begin + at, count, wide);
    here.first = begin + at;
    body(begin + at, count, here);
  }
}

}  // namespace
}  // namespace gcext::GCEXT_ISA
