// hadamard: the bodies, compiled once per instruction set. See hadamard.h.
#include <cstdint>
#include <cstring>

#include "hadamard.h"

namespace gcext::GCEXT_ISA {
namespace {

void flip(float* x, int64_t n, const uint64_t* sign, float factor) {
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t word = sign[i / 64];
    for (int j = 0; j < 64; ++j) {
      float y = x[i + j] * factor;
      uint32_t bits;
      std::memcpy(&bits, &y, sizeof bits);
      bits ^= static_cast<uint32_t>(word >> j) << 31;
      std::memcpy(&y, &bits, sizeof bits);
      x[i + j] = y;
    }
  }
}

// One stage from `from` to `to`, n a multiple of 2*half.
inline void stage(const float* from, float* to, int64_t n, int64_t half) {
  for (int64_t start = 0; start < n; start += 2 * half) {
    for (int64_t i = start; i < start + half; ++i) {
      const float p = from[i], q = from[half + i];
      to[i] = p + q;
      to[half + i] = p - q;
    }
  }
}

// Strides 1 to 32 of an 8 x 8 tile: across its rows, transposed, across its rows.
inline void tile(float* x) {
  float y[64];
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) y[8 * j + i] = x[8 * i + j];
  stage(y, y, 64, 8);
  stage(y, y, 64, 16);
  stage(y, y, 64, 32);
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 8; ++j) x[8 * i + j] = y[8 * j + i];
  stage(x, x, 64, 8);
  stage(x, x, 64, 16);
  stage(x, x, 64, 32);
}

void transform(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 64) tile(x + i);
  for (int64_t half = 64; half < n; half *= 2) stage(x, x, n, half);
}

}  // namespace

const HadamardTable hadamard_table = {flip, transform};

}  // namespace gcext::GCEXT_ISA
