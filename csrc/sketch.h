// sketch: the count sketch of a vector (Charikar, Chen & Farach-Colton 2002), and estimates of the
// vector's elements from it.
//
//   table_rc   = sum of sign_r(i) x_i over the i with bucket_r(i) = c     r < rows, c < cols
//   estimate_i = median over r of sign_r(i) table_{r, bucket_r(i)}
//
//   h            = mixed(mixed(mixed(seed) + r) ^ i)                          all mod 2^64
//   bucket_r(i)  = (h >> 32) * cols >> 32                                     uniform to 2^-32
//   sign_r(i)    = -1 where the lowest bit of h is set, else 1
//
// The median of an even number of values is the mean of the two in the middle, in float64 and
// rounded once; an estimate of zero is +0.
//
// Sums are of integers, so no order of addition matters: x_i is rounded to whole units, to the
// nearest, ties to even, and a sum of units to float32, once:
//
//   unit = 2^(E - 126 - B)     B = min(50, 62 - ceil(log2 n)) of n elements
//                              E: exponent field of the largest |x|, or 1, so |x| < 2^(E - 126)
//
// A magnitude of at least 2^(24 - B) of the largest is exact, as are all where that is a denormal;
// others are off by half a unit, at most 2^-B of the largest. So a cell of m elements errs by
//
//   |table_rc - sum| <= m 2^-B max|x| + 2^-24 |sum|
//
// The sum itself is below 2^63 units. A sketch is linear but for these roundings: tables of one
// seed and size add up to the table of the sum.
//
//   table  float32 [rows * cols], row by row; where info has a status, anything
//   info   int64[4], see source.h: n | status | where | 0
//
// Limits: rows <= 64, cols < 2^31, 2^38 elements. Math below is shared with the device.
#pragma once

#include "common/isa.h"
#include "common/scalar.h"

namespace gcext {

constexpr int kSketchRows = 64;

struct SketchShape {
  int64_t rows, cols;
  uint64_t key;  // mixed(seed)

  GCEXT_HD int64_t cells() const { return rows * cols; }
  GCEXT_HD uint64_t row_key(int64_t row) const { return mixed(key + static_cast<uint64_t>(row)); }
};

// Which elements: those of an index, else first, first + 1, ..
struct SketchElements {
  const void* index;  // int64 if `wide`, else int32; nullptr: none
  bool wide;
  int64_t first;

  GCEXT_HD uint64_t operator[](int64_t i) const {
    if (index == nullptr) return static_cast<uint64_t>(first + i);
    return static_cast<uint64_t>(wide ? static_cast<const int64_t*>(index)[first + i]
                                      : static_cast<const int32_t*>(index)[first + i]);
  }
};

GCEXT_HD inline uint64_t sketch_hash(uint64_t row_key, uint64_t element) {
  return mixed(row_key ^ element);
}
GCEXT_HD inline int64_t sketch_bucket(uint64_t hash, int64_t cols) {
  return static_cast<int64_t>((hash >> 32) * static_cast<uint64_t>(cols) >> 32);
}
GCEXT_HD inline bool sketch_negative(uint64_t hash) { return (hash & 1) != 0; }

GCEXT_HD inline double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(1023 + exponent) << 52;
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// log2 of the unit of n elements whose largest key is `top`, a finite one.
GCEXT_HD inline int sketch_unit(uint32_t top, int64_t n) {
  int log = 0;
  while (log < 38 && int64_t{1} << log < n) ++log;
  const int bits = 62 - log < 50 ? 62 - log : 50;
  const int exponent = static_cast<int>(top >> 23);
  return (exponent > 0 ? exponent : 1) - 126 - bits;
}

// x in whole units, below 2^51 of them: 3 * 2^51 added, the units are the mantissa's low bits.
GCEXT_HD inline int64_t sketch_units(float x, double per_unit) {
  constexpr int64_t kShiftBits = 0x4338000000000000;
  const double shifted = static_cast<double>(x) * per_unit + 0x1.8p52;
  int64_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return bits - kShiftBits;
}

// A sum in float32: only the first conversion rounds, as a sum below 2^-126 has no more bits than a
// denormal. Infinite where it overflows.
GCEXT_HD inline float sketch_cell(int64_t sum, double unit) {
  return static_cast<float>(static_cast<double>(static_cast<float>(sum)) * unit);
}

// The mean of the two values in the middle, which for an odd number are one. Adding +0 makes -0 it.
GCEXT_HD inline float sketch_middle(float low, float high) {
  return static_cast<float>((static_cast<double>(low) + static_cast<double>(high)) * 0.5) + 0.0f;
}

// The bodies compiled per instruction set.
struct SketchTable {
  // Adds n values to a table of sums, in units of which a value of 1 has per_unit.
  void (*add)(const float* value, int64_t n, SketchElements elements, const SketchShape& shape,
              double per_unit, int64_t* sums);
  // Estimates n elements.
  void (*query)(const float* table, const SketchShape& shape, SketchElements elements, int64_t n,
                float* estimate);
  // Adds `parts` tables of sums, `stride` apart, and rounds n cells. Returns the largest key.
  uint32_t (*round)(const int64_t* sums, int64_t parts, int64_t stride, int64_t n, double unit,
                    float* table);
};

GCEXT_DECLARE_TABLE(SketchTable, sketch_table)

}  // namespace gcext
