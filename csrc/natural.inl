// Bodies of natural.h for one instruction set.
#include "common/draws.h"
#include "common/lanes.h"
#include "natural.h"

namespace gcext::GCEXT_ISA {
namespace {

void draw(const float* acc, int64_t n, uint64_t key, uint64_t index, int32_t most, int16_t* power) {
  DrawnRun run;
  for (int64_t at = 0; at < n; at += kBatch) {
    const int64_t m = n - at < kBatch ? n - at : kBatch;
    run.draw(key, static_cast<int64_t>(index) + at);
    for (int64_t i = 0; i < m; ++i)
      power[at + i] = static_cast<int16_t>(power_of(acc[at + i], run.one(i), most));
  }
}

void subtract(float* acc, int64_t n, const int16_t* power, float scale) {
  int64_t i = 0;
#if defined(__AVX512F__)
  // A product by a power of two that is rounded once, as power_value rounds it.
  for (; i + kVector <= n; i += kVector) {
    const __m512i own = _mm512_cvtepi16_epi32(load_eight(reinterpret_cast<const char*>(power + i))),
                  magnitude = _mm512_abs_epi32(own),
                  minus = _mm512_and_si512(own, _mm512_set1_epi32(INT32_MIN));
    const __m512 exponent =
        _mm512_cvtepi32_ps(_mm512_sub_epi32(magnitude, _mm512_set1_epi32(kPowerOfOne)));
    const __m512 value = _mm512_maskz_scalef_ps(_mm512_test_epi32_mask(magnitude, magnitude),
                                                _mm512_set1_ps(scale), exponent);
    const __m512 sent = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(value), minus));
    _mm512_storeu_ps(acc + i, _mm512_sub_ps(_mm512_loadu_ps(acc + i), sent));
  }
#endif
  for (; i < n; ++i) acc[i] -= power_value(scale, power[i]);
}

bool values(const int16_t* power, int64_t n, float scale, float* value) {
  uint32_t beyond = 0;
  for (int64_t i = 0; i < n; ++i)
    beyond |= static_cast<uint32_t>(power[i] + kPowers - 1) > 2u * (kPowers - 1) ? 1u : 0u;
  if (beyond != 0) return false;
  for (int64_t i = 0; i < n; ++i) value[i] = power_value(scale, power[i]);
  return true;
}

}  // namespace

const NaturalTable natural_table = {draw, subtract, values};

}  // namespace gcext::GCEXT_ISA
