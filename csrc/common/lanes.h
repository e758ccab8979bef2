// For bodies of one instruction set: vectors of mixed widths, which compilers do not make well of
// plain loops.
#pragma once

#include <cstring>

#include "scalar.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace gcext::GCEXT_ISA {
namespace {

constexpr int kVector = 16;         // elements at a time
constexpr int64_t kLookedUp = 128;  // elements that are worth a table of what is sent of them

typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double))));

// Sums of elements, side by side.
struct LaneSums {
  Lanes dot = {}, squares = {};

  void add(int64_t i, double product, double square) {
    dot[i % kLanes] += product;
    squares[i % kLanes] += square;
  }
};

inline double added(const Lanes& sums) {
  double lane[kLanes];
  std::memcpy(lane, &sums, sizeof lane);
  return add_lanes(lane);
}

#if defined(__AVX512F__)
inline __m256i upper(__m512i x) { return _mm512_extracti64x4_epi64(x, 1); }
inline __m512i joined(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline __m512d widened(__m256i floats) { return _mm512_cvtps_pd(_mm256_castsi256_ps(floats)); }
inline __m512d whole(__m512d x) {
  return _mm512_roundscale_pd(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
inline __m256i load_eight(const char* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}
#endif

}  // namespace
}  // namespace gcext::GCEXT_ISA
