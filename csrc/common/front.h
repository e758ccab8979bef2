// For AVX2 bodies, which have no instruction that closes up lanes.
#pragma once

#if defined(__AVX2__) && !defined(__AVX512F__)
#include <immintrin.h>

#include <cstdint>

namespace gcext::GCEXT_ISA {
namespace {

// Lane permutations that move the set lanes of a mask to the front.
struct Front {
  alignas(32) uint32_t lane[256][8];
  constexpr Front() : lane{} {
    for (int mask = 0; mask < 256; ++mask) {
      int n = 0;
      for (int i = 0; i < 8; ++i) {
        if (mask >> i & 1) lane[mask][n++] = static_cast<uint32_t>(i);
      }
    }
  }
};
constexpr Front front;

inline __m256i to_front(__m256i x, unsigned mask) {
  const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(front.lane[mask]));
  return _mm256_permutevar8x32_epi32(x, order);
}

}  // namespace
}  // namespace gcext::GCEXT_ISA
#endif
