// Bodies of codes.h for one instruction set: plain loops that the compiler turns into vectors, but
// where values are looked up.
#include "codes.h"
#include "common/widen.h"
#include "dynamic8_values.h"

namespace gcext::GCEXT_ISA {
namespace {

void look_up(const uint32_t* code, int64_t n, const float* table, [[maybe_unused]] int width,
             float* value) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if (width <= 4) {  // in a register
    const auto mask = static_cast<__mmask16>((1u << (1 << width)) - 1);
    const __m512 values = _mm512_maskz_loadu_ps(mask, table);
    for (; i + kVector <= n; i += kVector)
      _mm512_storeu_ps(value + i, _mm512_permutexvar_ps(_mm512_loadu_si512(code + i), values));
  }
#endif
  for (; i < n; ++i) value[i] = table[code[i]];
}

void uniform(const uint32_t* code, int64_t n, float scale, int width, float* value) {
  for (int64_t i = 0; i < n; ++i) value[i] = uniform_value(scale, code[i], width);
}

void dynamic(const uint32_t* code, int64_t n, float scale, float* value) {
  int64_t i = 0;
#if defined(__AVX512F__)
  const Magnitudes magnitudes;
  for (; i + kVector <= n; i += kVector)
    _mm512_storeu_ps(value + i,
                     magnitudes.values(_mm512_loadu_si512(code + i)) * _mm512_set1_ps(scale));
#endif
  for (; i < n; ++i) value[i] = scale * kDynamic8.value[code[i]];
}

void halves(const uint8_t* in, int64_t n, float* value) { widen({in, false}, 0, n, value); }

void bfloats(const uint8_t* in, int64_t n, float* value) { widen({in, true}, 0, n, value); }

}  // namespace

const CodesTable codes_table = {look_up, uniform, dynamic, halves, bfloats};

}  // namespace gcext::GCEXT_ISA
