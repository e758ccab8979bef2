// Bodies of natural.h for one instruction set.
#include "common/draws.h"
#include "common/lanes.h"
#include "natural.h"

namespace gcext::GCEXT_ISA {
namespace {

#if defined(__AVX512F__)
// The magnitudes of power_value; some: where a power is not 0. A product by a power of two is
// rounded once, as there.
inline __m512 power_sizes(__m512i size, __mmask16 some, __m512 scale) {
  const __m512i exponent = _mm512_sub_epi32(size, _mm512_set1_epi32(kPowerOfOne));
  return _mm512_maskz_scalef_ps(some, scale, _mm512_cvtepi32_ps(exponent));
}

// power_of and, kSubtract, power_value of kVector elements; at: what they draw, unaligned.
template <bool kSubtract>
inline void draw_vector(float* acc, const char* at, int32_t most, __m512 scale, int16_t* power) {
  const __m512i bits = _mm512_loadu_si512(acc),
                key = _mm512_and_si512(bits, _mm512_set1_epi32(INT32_MAX)),
                mantissa = _mm512_set1_epi32(0x7fffff);
  const __mmask16 some = _mm512_test_epi32_mask(key, key), minus = _mm512_movepi32_mask(bits);
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
                own = _mm512_mask_sub_epi32(size, minus, _mm512_setzero_si512(), size);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(power), _mm512_cvtepi32_epi16(own));
  if (!kSubtract) return;
  const __m512 x = _mm512_castsi512_ps(bits), value = power_sizes(size, some, scale);
  // Of a negative zero nothing is sent, and it stays one.
  _mm512_storeu_ps(
      acc, _mm512_mask_add_ps(_mm512_sub_ps(x, value), _kand_mask16(minus, some), x, value));
}
#endif

template <bool kSubtract>
void draw_of(float* acc, int64_t n, uint64_t key, uint64_t index, int32_t most, float scale,
             [[maybe_unused]] Ahead ahead, int16_t* power) {
  DrawnRun run;
  for (int64_t at = 0; at < n; at += kBatch) {
    const int64_t m = n - at < kBatch ? n - at : kBatch;
    run.draw(key, static_cast<int64_t>(index) + at);
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + kVector <= m; i += kVector) {
      ahead.ask(at + i);
      draw_vector<kSubtract>(acc + at + i, run.at(i), most, _mm512_set1_ps(scale), power + at + i);
    }
#endif
    const int64_t rest = i;
    for (; i < m; ++i)
      power[at + i] = static_cast<int16_t>(power_of(acc[at + i], run.one(i), most));
    for (i = rest; kSubtract && i < m; ++i) acc[at + i] -= power_value(scale, power[at + i]);
  }
}

void draw(float* acc, int64_t n, uint64_t key, uint64_t index, int32_t most, float scale,
          Ahead ahead, int16_t* power) {
  (scale > 0 ? draw_of<true> : draw_of<false>)(acc, n, key, index, most, scale, ahead, power);
}

bool within(const int16_t* power, int64_t n) {
  int16_t least = 0, most = 0;
  for (int64_t i = 0; i < n; ++i) {
    least = power[i] < least ? power[i] : least;
    most = power[i] > most ? power[i] : most;
  }
  return -kPowers < least && most < kPowers;
}

void values(const int16_t* power, int64_t n, float scale, float* value) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + kVector <= n; i += kVector) {
    const __m512i own = wide_levels(power + i), size = _mm512_abs_epi32(own),
                  minus = _mm512_and_si512(own, _mm512_set1_epi32(INT32_MIN));
    const __m512 sizes = power_sizes(size, _mm512_test_epi32_mask(own, own), _mm512_set1_ps(scale));
    _mm512_storeu_si512(value + i, _mm512_or_si512(_mm512_castps_si512(sizes), minus));
  }
#endif
  for (; i < n; ++i) value[i] = power_value(scale, power[i]);
}

}  // namespace

const NaturalTable natural_table = {draw, within, values};

}  // namespace gcext::GCEXT_ISA
