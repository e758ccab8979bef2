// codes: values that travel as fixed-width codes into a table; docs/wire-format.md has the packet.
//
//   bits    code i of `width` bits, no gaps between them: csrc/bits.h
//   bucket  elements that share a scale or a table; 0: one serves all. Element i is in bucket
//           j = i / bucket
//
//   table     width   floats a bucket   value of code c in bucket j
//   values    0 .. 8  2^width           scales[j*2^width + c]
//   uniform   1 .. 8  1                 scales[j] * (2c - s) / s, s = 2^width - 1: product and
//                                       quotient in float64, rounded once more to float32
//   dynamic8  8       1                 scales[j] * T[c], rounded once to float32
//   float16   16      none              the 16-bit float itself; bucket is 0
//   bfloat16  16      none
//
// The kernel decodes: bits and scales to n float32. It reads the (n*width + 7) / 8 bytes alone, at
// any address. float16 and bfloat16 codes must be finite.
//
// T is the dynamic tree data type of Dettmers (2015, arXiv:1511.04561) with 8 bits: a sign, zeros
// that count the decimal exponent, a one, and a linear fraction in the bits that are left. Each
// value is the middle of its interval, so that with t = |c - 127|
//
//   t = 0         T = 0
//   t = 1 .. 127  T = +-(0.1 + 0.9 (j + 1/2) / 2^i) 10^(i-6)        i = floor(log2 t), j = t - 2^i
//   t = 128       T = 1
//
// and T[c] rises with c. The fraction is a quotient of whole numbers, below: one float64 division
// and one rounding to float32 give the same constants everywhere.
//
// Limits: n*width below 2^63. The math below is shared with the device.
#pragma once

#include "common/isa.h"
#include "common/scalar.h"

namespace gcext {

// The numbers are those of the packet's field.
enum class CodeTable : uint8_t { kValues, kUniform, kDynamic8, kFloat16, kBfloat16 };

constexpr int kCodeTables = 5;
constexpr int kMostTableBits = 8;   // a width above that has no table
constexpr int kDynamic8Zero = 127;  // the code of 0

// T by code.
struct Dynamic8 {
  float value[256];

  constexpr Dynamic8() : value() {
    for (int code = 0; code < 256; ++code) {
      const bool negative = code < kDynamic8Zero;
      const float size = magnitude(negative ? kDynamic8Zero - code : code - kDynamic8Zero);
      value[code] = negative ? -size : size;
    }
  }

  static constexpr float magnitude(int t) {
    if (t == 0) return 0.0f;
    if (t == 128) return 1.0f;
    int i = 0;
    int64_t tens = 10'000'000;  // 10^(7-i)
    for (; t >> (i + 1) != 0; ++i) tens /= 10;
    const int64_t j = t - (1 << i), twice = int64_t{2} << i;
    return static_cast<float>(static_cast<double>(twice + 18 * j + 9) /
                              static_cast<double>(twice * tens));
  }
};

// For the host; the device has its own in cuda/codes.cu.
inline constexpr Dynamic8 kDynamic8{};

GCEXT_HD inline bool width_fits(CodeTable table, int64_t width) {
  switch (table) {
    case CodeTable::kValues:
      return width >= 0 && width <= kMostTableBits;
    case CodeTable::kUniform:
      return width >= 1 && width <= kMostTableBits;
    case CodeTable::kDynamic8:
      return width == 8;
    default:
      return width == 16;
  }
}

// Floats a bucket. The width fits.
GCEXT_HD inline int64_t floats_per_bucket(CodeTable table, int width) {
  if (table == CodeTable::kValues) return int64_t{1} << width;
  return table == CodeTable::kUniform || table == CodeTable::kDynamic8 ? 1 : 0;
}

// Buckets of n elements.
GCEXT_HD inline int64_t bucket_count(int64_t n, int64_t bucket) {
  if (bucket == 0) return n > 0 ? 1 : 0;
  return n / bucket + (n % bucket != 0 ? 1 : 0);
}

// What a uniform or dynamic8 bucket of scale 0 consists of: the least value that is not negative.
GCEXT_HD inline uint32_t code_of_zero(CodeTable table, int width) {
  return table == CodeTable::kDynamic8 ? uint32_t{kDynamic8Zero} : uint32_t{1} << (width - 1);
}

GCEXT_HD inline float uniform_value(float scale, uint32_t code, int width) {
  const int32_t steps = (1 << width) - 1;
  return static_cast<float>(static_cast<double>(scale) *
                            static_cast<double>(2 * static_cast<int32_t>(code) - steps) /
                            static_cast<double>(steps));
}

GCEXT_HD inline float half_value(uint32_t code) {
  return float_of_half(static_cast<uint16_t>(code));
}

GCEXT_HD inline float bfloat_value(uint32_t code) { return float_of(code << 16); }

// Codes and their table, borrowed.
struct Coded {
  const uint8_t* bits = nullptr;
  const float* scale = nullptr;
  int64_t bytes = 0, bucket = 0;
  CodeTable table = CodeTable::kValues;
  int width = 0;
};

// The values of codes [from, until), from being a multiple of 8.
void decode_codes(const Coded& coded, int64_t from, int64_t until, float* value);

// The bodies compiled per instruction set: the values of n codes.
struct CodesTable {
  // table: 2^width values.
  void (*look_up)(const uint32_t* code, int64_t n, const float* table, int width, float* value);
  void (*uniform)(const uint32_t* code, int64_t n, float scale, int width, float* value);
  // scale * T[c]
  void (*dynamic)(const uint32_t* code, int64_t n, float scale, float* value);
  // 2n bytes, at any address.
  void (*halves)(const uint8_t* in, int64_t n, float* value);
  void (*bfloats)(const uint8_t* in, int64_t n, float* value);
};

GCEXT_DECLARE_TABLE(CodesTable, codes_table)

}  // namespace gcext
