// wangni: elements of a sum that are sent with probabilities of their own (Wangni et al. 2018,
// arXiv:1710.09854), fused with error feedback.
//
//   acc   = tensor + decay*memory                    float32, two roundings, no contraction
//   limit = 1/lambda of the paper's greedy Algorithm 3 after kWangniSteps iterations, for `budget`
//           elements in the mean:
//
//     limit_0 = M(acc) / budget,   M(x) = n * the mean of |x_i|: an exact sum, rounded to float32
//     of c elements from limit_t on, limit_(t+1) = min(limit_t, M(those below) / (budget - c)),
//                                                  limit_t where c is not below the budget
//           float64, two roundings, then rounded to float32
//
//   sure  = i with key(acc_i) >= max(limit, 1)       sent as they are
//   drawn = other i with level_of(|acc_i|, 1/limit, u_i) = 1, u_i of (seed, i): csrc/quantize.h
//           sent as sign(acc_i) * limit; where there is an out as sign(acc_i) * the mean of their
//           magnitudes, an exact sum rounded once: the least squares' scale
//   out_i = acc_i - what was sent, one rounding
//
// So without an out the mean of what is sent is acc_i, to 2^-32 of the limit.
//
//   index, value   of sure: int32, from 2^31 elements on int64, rising; float32
//   at, sent       of drawn, likewise
//   info, drawn    int64[4] of either, see select.h: number | status | where | 0, or of drawn the
//                  bits of the magnitude, 0 where nothing is drawn. The status is that of both
//
// out and what is not finite: as in quantize.h. Where max |acc| + limit is no float32 the status is
// kSelectScaled. On the CPU the arrays have as many entries as there are, on CUDA a capacity of all
// elements.
//
// Limits: 2^39 elements. Math below is shared with the device.
#pragma once

#include "common/isa.h"
#include "common/source.h"
#include "quantize.h"

namespace gcext {

constexpr int kWangniSteps = 2;

struct WangniRule {
  double budget;
  uint64_t key;  // mixed(seed)
};

// The magnitude of a key; 2^128 of infinity.
GCEXT_HD inline double wangni_size(uint32_t key) {
  return key < kInfKey ? static_cast<double>(float_of(key)) : 0x1p128;
}

constexpr double kWangniOverflow = 0x1p128 - 0x1p103;  // what float32 rounds to infinity

// limit_(t+1), from the mean of all n magnitudes below limit_t, zeros for the others, and how many
// these are. first: there is no limit yet.
GCEXT_HD inline uint32_t wangni_limit(const WangniRule& rule, int64_t n, uint32_t mean,
                                      uint64_t above, bool first, uint32_t limit) {
  const double left = rule.budget - static_cast<double>(above);
  if (!(left > 0)) return limit;
  const double mass = wangni_size(mean) * static_cast<double>(n);
  const double exact = mass / (left > 1e-300 ? left : 1e-300);
  const uint32_t next =
      exact < kWangniOverflow ? bits_of(static_cast<float>(exact)) : uint32_t{kInfKey};
  return first || next < limit ? next : limit;
}

GCEXT_HD inline bool wangni_fits(uint32_t top, uint32_t limit) {
  return wangni_size(top) + wangni_size(limit) < kWangniOverflow;
}

// The least key that is sent as it is.
GCEXT_HD inline uint32_t wangni_sure(uint32_t limit) { return limit < 1 ? 1 : limit; }

// Whether element i, which is not sure, is drawn.
GCEXT_HD inline bool wangni_draws(const WangniRule& rule, float acc, uint32_t limit, int64_t i) {
  if (limit == 0) return false;
  const double per_limit = 1.0 / static_cast<double>(float_of(limit));
  const double magnitude = static_cast<double>(float_of(key_of(acc)));
  return level_of(magnitude, per_limit, draw_one(rule.key, i)) != 0;
}

// The bodies compiled per instruction set.
struct WangniTable {
  // Marks levels that are not 0, a bit an element and 64 a word, where `sure` has none; returns how
  // many.
  int64_t (*mark)(const int8_t* level, int64_t n, const uint64_t* sure, uint64_t* words);
};

GCEXT_DECLARE_TABLE(WangniTable, wangni_table)

}  // namespace gcext
