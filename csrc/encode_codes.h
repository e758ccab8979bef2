// encode_codes: a sum as fixed-width codes into a table, fused with error feedback. csrc/codes.h
// has the tables, and decodes.
//
//   acc = tensor + decay*memory                        float32, two roundings, no contraction
//
// values, of one bit (Seide et al. 2014)
//
//   code_i = acc_i < 0                                 a zero of either sign counts as positive
//   sent   = the mean of the bucket's elements of that code: exact sum, one rounding; +0 where
//            there are none. The two means are the bucket's two scales
//
// uniform (DoReFa, Zhou et al. 2016; LAQ, Sun et al. 2019), s = 2^width - 1
//
//   top    = max |acc| of the bucket
//   code_i = floor(acc_i * (s/2 / top) + (s+1)/2 + v_i)          float64, in this order
//   v_i    = 0; random: uniform in [-1/2, 1/2), a multiple of 2^-32, from (seed, i)
//   sent_i = scale * (2 code_i - s) / s                          as csrc/codes.h rounds it
//   scale  = top; fit: that of least squares,
//            s * (sum of acc_i L_i) / (sum of L_i^2), L_i = 2 code_i - s
//            float64 sums of each bucket, rounded once, within 0 and the greatest float32
//
// Without v that is the nearest level, of two the greater. With it the mean of sent_i (not fitted)
// over seeds is acc_i to 2^-32 of a step and one rounding, the ends of the grid included, as no
// element is beyond top.
//
// dynamic8 (Dettmers 2015)
//
//   scale  = max |acc| of the bucket
//   code_i = the T nearest to y = acc_i / scale, of two that of smaller magnitude
//            y: times 1 / scale in float64, rounded to float32; -1, which T lacks, to its neighbour
//   sent_i = scale * T[code_i]
//
// float16, bfloat16
//
//   sent_i = the nearest one, ties to even; beyond the greatest finite one, that
//
// A uniform or dynamic8 bucket whose scale is 0 has the code of 0 alone (code_of_zero).
//
// out_i = acc_i - sent_i, one rounding; fit, or any code of `values` or dynamic8, never makes a
// bucket's norm grow. out may be memory. Where a sum is not finite nothing is written to out if it
// is the memory; another is anything, on CUDA a copy of memory.
//
// A bucket of at most kCell elements is encoded in one pass, or in two (one to validate the sums)
// where out is the memory. Larger ones take a pass more for their scales, and another to fit them.
//
//   scales float32, floats_per_bucket a bucket, and bits as csrc/codes.h has them
//   info   int64[4], see select.h: n | status | where | 0
//
// Limits: 2^39 elements. Math below is shared with the device.
#pragma once

#include "codes.h"
#include "quantize.h"

namespace gcext {

// How the elements of uniform buckets are rounded.
struct GridRule {
  int width;
  bool random;
  uint64_t key;  // mixed(seed)
};

GCEXT_HD inline double grid_factor(float top, int width) {
  return 0.5 * ((1 << width) - 1) / static_cast<double>(top);
}
GCEXT_HD inline double grid_middle(int width) { return 0.5 * (1 << width); }

// The code of x; v in units of 2^-32. Never out of range: |x| <= top, and rounding errors are below
// 2^-40 of a step.
GCEXT_HD inline uint32_t grid_code(float x, double factor, double middle, int32_t v) {
  return static_cast<uint32_t>(
      static_cast<int32_t>(static_cast<double>(x) * factor + middle + v * 0x1p-32));
}

// What uniform_value gives, by one product with step = scale / s in float64, which errs by less
// than 2^-51. scale (2c - s) / s is a quotient of at most 32 by 8 bits: it is at least 2^-33 away
// from every midpoint of two float32, unless it is one; and it is none, as where s, which is odd,
// divides scale (2c - s), the quotient is a multiple of the scale's unit and not above the scale.
GCEXT_HD inline double grid_step(float scale, int width) {
  return static_cast<double>(scale) / ((1 << width) - 1);
}
GCEXT_HD inline float grid_value(double step, uint32_t code, int width) {
  return static_cast<float>(step * (2 * static_cast<int32_t>(code) - ((1 << width) - 1)));
}

// The fitted scale, from its bucket's sums.
GCEXT_HD inline float fitted_scale(const FitSums& sums, int width) {
  return sums.dot > 0 ? fitted_norm(sums, (1 << width) - 1) : 0.0f;
}

// A 16-bit float, in the lower half of code, and its value.
struct Half {
  uint32_t code;
  float sent;
};

GCEXT_HD inline Half half_of(float x) {
  const uint32_t key = key_of(x), sign = bits_of(x) & 0x80000000u;
  // From 2^-14 on: round 13 bits off, at most to 65504.
  const int32_t up = static_cast<int32_t>((key + 0xfffu + (key >> 13 & 1)) & ~0x1fffu);
  const uint32_t large = static_cast<uint32_t>(up < 0x477fe000 ? up : 0x477fe000);
  // Below: added to 1/2 a number is rounded to multiples of 2^-24.
  const float shifted = float_of(key) + 0.5f;
  const bool tiny = static_cast<int32_t>(key) < 0x38800000;
  const uint32_t code = tiny ? bits_of(shifted) - 0x3f000000u : (large >> 13) - (112u << 10);
  const uint32_t sent = tiny ? bits_of(shifted - 0.5f) : large;
  return {code | sign >> 16, float_of(sent | sign)};
}

GCEXT_HD inline Half bfloat_of(float x) {
  const uint32_t key = key_of(x), sign = bits_of(x) & 0x80000000u;
  const int32_t up = static_cast<int32_t>((key + 0x7fffu + (key >> 16 & 1)) & ~0xffffu);
  const uint32_t sent = static_cast<uint32_t>(up < 0x7f7f0000 ? up : 0x7f7f0000) | sign;
  return {sent >> 16, float_of(sent)};
}

// y of dynamic8; inverse = 1 / scale in float64.
GCEXT_HD inline float dynamic_ratio(float x, double inverse) {
  return static_cast<float>(static_cast<double>(float_of(key_of(x))) * inverse);
}

// Exact sums of a bucket's two sides.
struct Sides {
  uint64_t bins[2][kBins];  // of the magnitudes: of elements >= 0, of those below
  int64_t count[2];
};

// Mean `side` of them, signed.
GCEXT_HD inline float side_mean(const uint64_t* bins, int64_t count, int side) {
  if (count == 0) return 0.0f;
  const float mean = float_of(exact_mean_bits(bins, static_cast<uint64_t>(count)));
  return side == 0 ? mean : -mean;
}

// The bodies compiled per instruction set, of elements in one bucket; n is at most kCell. A code
// takes a byte.
struct EncodeTable {
  // top > 0; the first being element `index`. fit: what the scale is fitted by, or nullptr.
  void (*grid)(const float* acc, int64_t n, float top, const GridRule& rule, int64_t index,
               Ahead ahead, uint8_t* code, FitSums* fit);
  void (*grid_subtract)(float* acc, int64_t n, float scale, int width, const uint8_t* code);
  // scale > 0.
  void (*dynamic)(const float* acc, int64_t n, float scale, Ahead ahead, uint8_t* code);
  void (*dynamic_subtract)(float* acc, int64_t n, float scale, const uint8_t* code);
  // Adds to sides; top is the largest key.
  void (*tally_sides)(const float* acc, int64_t n, uint32_t top, Ahead ahead, Sides* sides);
  void (*sides)(const float* acc, int64_t n, uint8_t* code);
  void (*sides_subtract)(float* acc, int64_t n, const float* mean);
  // acc becomes acc - sent.
  void (*halves)(float* acc, int64_t n, uint16_t* code);
  void (*bfloats)(float* acc, int64_t n, uint16_t* code);
  // 8 codes a group, in `width` <= 8 bits each.
  void (*pack)(const uint8_t* code, int64_t groups, int width, uint8_t* out);
};

GCEXT_DECLARE_TABLE(EncodeTable, encode_table)

}  // namespace gcext
