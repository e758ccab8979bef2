// Bodies of natural.h for one instruction set.
#include "common/draws.h"
#include "common/lanes.h"
#include "natural.h"

namespace gcext::GCEXT_ISA {
namespace {

#if defined(__AVX512F__)
// power_of, of kVector elements; at: what they draw, unaligned.
inline void draw_vector(const float* acc, const char* at, int32_t most, int16_t* power) {
  const __m512i bits = _mm512_loadu_si512(acc),
                key = _mm512_and_si512(bits, _mm512_set1_epi32(INT32_MAX)),
                mantissa = _mm512_set1_epi32(0x7fffff);
  const __mmask16 some = _mm512_test_epi32_mask(key, key);
  __m512i one = key;
  const __mmask16 denormal = _mm512_mask_cmple_epi32_mask(some, key, mantissa);
  __m512i offset = _mm512_set1_epi32(23);
  if (denormal != 0) {
    one = _mm512_mask_mov_epi32(one, denormal, _mm512_castps_si512(_mm512_cvtepi32_ps(key)));
    offset = _mm512_mask_mov_epi32(offset, denormal, _mm512_set1_epi32(23 - 149));
  }
  const __mmask16 up = _mm512_cmplt_epi32_mask(_mm512_srli_epi32(_mm512_loadu_si512(at), 9),
                                               _mm512_and_si512(one, mantissa));
  const __m512i down = _mm512_add_epi32(_mm512_srli_epi32(one, 23), offset),
                drawn = _mm512_mask_sub_epi32(down, up, down, _mm512_set1_epi32(-1)),
                size = _mm512_maskz_min_epi32(some, drawn, _mm512_set1_epi32(most)),
                own = _mm512_mask_sub_epi32(size, _mm512_movepi32_mask(bits),
                                            _mm512_setzero_si512(), size);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(power), _mm512_cvtepi32_epi16(own));
}
#endif

void draw(const float* acc, int64_t n, uint64_t key, uint64_t index, int32_t most, int16_t* power) {
  DrawnRun run;
  for (int64_t at = 0; at < n; at += kBatch) {
    const int64_t m = n - at < kBatch ? n - at : kBatch;
    run.draw(key, static_cast<int64_t>(index) + at);
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + kVector <= m; i += kVector)
      draw_vector(acc + at + i, run.at(i), most, power + at + i);
#endif
    for (; i < m; ++i)
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
