// rotate: the bodies, compiled once per instruction set. See rotate.h.
#include <cstdint>
#include <cstring>

#include "rotate.h"

namespace gcext::GCEXT_ISA {
namespace {

inline float negated(float x, uint64_t bits, int j) {
  uint32_t y;
  std::memcpy(&y, &x, sizeof y);
  y ^= static_cast<uint32_t>(bits >> j) << 31;
  std::memcpy(&x, &y, sizeof x);
  return x;
}

void flip(float* x, int64_t n, const uint64_t* sign, float factor) {
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t word = sign == nullptr ? 0 : sign[i / 64];
    for (int j = 0; j < 64; ++j) x[i + j] = negated(x[i + j] * factor, word, j);
  }
}

void spread(const uint8_t* symbols, int64_t n, float scale, float* x) {
  for (int64_t i = 0; i < n; i += 64) {
    uint64_t word;
    std::memcpy(&word, symbols + i / 8, sizeof word);
    for (int j = 0; j < 64; ++j) x[i + j] = negated(scale, word, j);
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

// Halves are added: 64 columns side by side, the rows in such an order (their numbers' bits
// reversed) that at most one partial sum of each number of rows waits for another.
double dot(const float* x, const float* y, int64_t n) {
  constexpr int kColumns = 64;
  double waiting[kMaxRotateLevel][kColumns];
  const int64_t rows = n / kColumns;
  int levels = 0;
  while (int64_t{1} << levels < rows) ++levels;
  double sum[kColumns];
  for (int64_t i = 0; i < rows; ++i) {
    int64_t row = 0;
    for (int bit = 0; bit < levels; ++bit) row |= (i >> bit & 1) << (levels - 1 - bit);
    const float *p = x + row * kColumns, *q = y + row * kColumns;
    for (int j = 0; j < kColumns; ++j)
      sum[j] = static_cast<double>(p[j]) * static_cast<double>(q[j]);
    int level = 0;
    for (; (i >> level & 1) != 0; ++level)
      for (int j = 0; j < kColumns; ++j) sum[j] += waiting[level][j];
    if (i + 1 < rows) std::memcpy(waiting[level], sum, sizeof sum);
  }
  for (int half = kColumns / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}

}  // namespace

const RotateTable rotate_table = {flip, transform, spread, dot};

}  // namespace gcext::GCEXT_ISA
