// Bodies of codes.h for one instruction set: plain loops that the compiler turns into vectors.
#include "codes.h"
#include "common/widen.h"

namespace gcext::GCEXT_ISA {
namespace {

void look_up(const uint32_t* code, int64_t n, const float* table, float* value) {
  for (int64_t i = 0; i < n; ++i) value[i] = table[code[i]];
}

void uniform(const uint32_t* code, int64_t n, float scale, int width, float* value) {
  for (int64_t i = 0; i < n; ++i) value[i] = uniform_value(scale, code[i], width);
}

void scaled(const uint32_t* code, int64_t n, const float* table, float scale, float* value) {
  for (int64_t i = 0; i < n; ++i) value[i] = scale * table[code[i]];
}

void halves(const uint8_t* in, int64_t n, float* value) { widen({in, false}, 0, n, value); }

void bfloats(const uint8_t* in, int64_t n, float* value) { widen({in, true}, 0, n, value); }

}  // namespace

const CodesTable codes_table = {look_up, uniform, scaled, halves, bfloats};

}  // namespace gcext::GCEXT_ISA
