// Bodies of codes.h for one instruction set: plain loops that the compiler turns into vectors.
#include <cstring>

#include "codes.h"

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

inline uint32_t load16(const uint8_t* in) {
  uint16_t x;
  std::memcpy(&x, in, sizeof x);
  return x;
}

void halves(const uint8_t* in, int64_t n, float* value) {
  for (int64_t i = 0; i < n; ++i) value[i] = half_value(load16(in + 2 * i));
}

void bfloats(const uint8_t* in, int64_t n, float* value) {
  for (int64_t i = 0; i < n; ++i) value[i] = bfloat_value(load16(in + 2 * i));
}

}  // namespace

const CodesTable codes_table = {look_up, uniform, scaled, halves, bfloats};

}  // namespace gcext::GCEXT_ISA
