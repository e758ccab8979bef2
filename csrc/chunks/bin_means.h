// bin_means: values in few equal bins, each sent as its bin's mean (the quantizer of SparseLoCo,
// Sarfi et al. 2025, after Ryabinin et al. 2023).
//
//   shift = (sum of x) / k          scale = range * s / codes          codes = 2^bits
//   s     = sqrt((sum of x^2 - shift * sum of x) / (k - 1))            the standard deviation
//   code  = floor((x - shift) / scale + codes/2 + 1/2), at least 0 and at most codes - 1
//   table[c] = the mean of all x of code c                exact sum, one rounding to float32
//   memory'_i = x_i - table[code_i]                       at the values' places in out
//
// All but the means is in float64: sums side by side over kLanes lanes within cells of kBinCell
// values, and cells in order, so that no result depends on threads or instruction sets. Where s is
// 0 every code is codes/2; the mean of no value is 0. Of at most `codes` values each has its own
// code, rising from 0, and travels as it is: the rule above would send, of two values 1 and -1,
// nothing.
//
//   index, value   pairs as select leaves them; of info, the count and the status are read
//   out            where the values came from, cleared at their places; nullptr: nothing is kept
//   table          float32, codes
//   packed         the codes of `bits` bits each, csrc/bits.h; a capacity for all of value
//
// Where info has a status nothing is written to out, and table and packed are anything.
#pragma once

#include <cmath>

#include "../common/exact_mean.h"

namespace gcext {

constexpr int64_t kBinCell = 4096;
constexpr int kMostBinBits = 8;

struct BinSums {
  double sum, squares;
};

struct BinRule {
  double shift, per_bin, middle;
  int32_t codes;
  bool own;  // at most `codes` values
};

GCEXT_HD inline BinRule bin_rule(const BinSums& sums, int64_t k, int32_t codes, double range) {
  BinRule rule = {0.0, 0.0, codes / 2 + 0.5, codes, k <= codes};
  if (rule.own) return rule;
  rule.shift = sums.sum / static_cast<double>(k);
  const double squares = sums.squares - sums.sum * rule.shift;
  const double spread = squares > 0 ? sqrt(squares / static_cast<double>(k - 1)) : 0.0;
  const double scale = range * spread / codes;
  rule.per_bin = scale > 0 ? 1 / scale : 0.0;
  return rule;
}

// The code of value number i.
GCEXT_HD inline uint32_t bin_code(const BinRule& rule, float x, int64_t i) {
  if (rule.own) return static_cast<uint32_t>(i);
  const double q = (static_cast<double>(x) - rule.shift) * rule.per_bin + rule.middle;
  if (!(q > 0)) return 0;
  return q < rule.codes ? static_cast<uint32_t>(q) : static_cast<uint32_t>(rule.codes - 1);
}

// For each code: a signed sum of mantissas for each exponent (exact_mean.h), and the count.
constexpr int kBinSlots = kBins + 1;

GCEXT_HD inline uint64_t signed_mantissa(uint32_t bits) {
  const uint64_t mantissa = mantissa_of(key_of(bits));
  return bits >> 31 != 0 ? ~mantissa + 1 : mantissa;
}

}  // namespace gcext
