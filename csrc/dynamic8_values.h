// For bodies of one instruction set: the values of codes of the dynamic 8-bit type (codes.h).
#pragma once

#include "codes.h"
#include "common/lanes.h"

#if defined(__AVX512F__)
namespace gcext::GCEXT_ISA {
namespace {

// In registers, as gathers from memory take longer than all of this: the magnitudes of codes
// 127 + t, t < 128; that of the last code is 1.
struct Magnitudes {
  __m512 part[8];

  Magnitudes() {
    for (int i = 0; i < 8; ++i)
      part[i] = _mm512_loadu_ps(kDynamic8.value + kDynamic8Zero + i * kVector);
  }

  __m512 values(__m512i code) const {
    const __m512i own = _mm512_sub_epi32(code, _mm512_set1_epi32(kDynamic8Zero)),
                  t = _mm512_abs_epi32(own);
    const auto bit = [&](int which) { return _mm512_test_epi32_mask(t, _mm512_set1_epi32(which)); };
    const auto of_32 = [&](int from) {
      return _mm512_permutex2var_ps(part[from], t, part[from + 1]);
    };
    const __m512 low = _mm512_mask_mov_ps(of_32(0), bit(32), of_32(2)),
                 high = _mm512_mask_mov_ps(of_32(4), bit(32), of_32(6)),
                 below_1 = _mm512_mask_mov_ps(low, bit(64), high),
                 found = _mm512_mask_mov_ps(below_1, bit(128), _mm512_set1_ps(1.0f));
    const __m512i minus = _mm512_and_si512(own, _mm512_set1_epi32(INT32_MIN));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(found), minus));
  }
};

}  // namespace
}  // namespace gcext::GCEXT_ISA
#endif
