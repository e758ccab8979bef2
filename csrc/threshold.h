// threshold: the elements of a sum from a magnitude on, fused with error feedback (Strom 2015; Aji
// & Heafield 2017, arXiv:1704.05021).
//
//   acc  = tensor + decay*memory                    float32, two roundings, no contraction
//   sent = i with key(acc_i) >= max(limit, 1)       keys: common/scalar.h; so zeros never are
//   value_i = acc_i, or with a scale above 0 sign(acc_i) * scale
//   out_i   = acc_i - value_i where i is sent, one rounding, and else acc_i
//
//   limit  int32 [1]: a key, which another kernel may have found
//   scale  the bits of a float32, 0 for none
//   index  int32, from 2^31 elements on int64: rising; value float32
//   info   int64[4], see select.h: number sent | status | where | scale, 0 where nothing is sent
//
// out, what is not finite, and with `next` a sum whose residual is not written: as in quantize.h.
// Of that sum what has a key from the limit on was sent. On the CPU index and value have as many
// entries as are sent, on CUDA a capacity for all.
#pragma once

#include "common/isa.h"
#include "common/source.h"

namespace gcext {

struct ThresholdRule {
  uint32_t limit;  // at least 1
  uint32_t scale;

  GCEXT_HD bool sends(float acc) const { return key_of(acc) >= limit; }
  GCEXT_HD float sent(float acc) const { return scale == 0 ? acc : with_sign_of(scale, acc); }
};

// What was sent of a sum, for next: common/source.h.
GCEXT_HD inline void set_sent(int64_t* next, const ThresholdRule& rule) {
  set_sent(next, int64_t{rule.limit} - 1, 0, rule.scale == 0 ? -1 : int64_t{rule.scale});
}

GCEXT_HD inline ThresholdRule threshold_rule(int32_t limit, uint32_t scale) {
  return {limit < 1 ? 1 : static_cast<uint32_t>(limit), scale};
}

constexpr int kTaken = 16;  // entries behind those that `take` returns, which it may overwrite

// The bodies compiled per instruction set.
struct ThresholdTable {
  // Writes what is sent of n elements, and its places from 0 on; returns how many. subtracted: and
  // leaves the rest in acc.
  int64_t (*take)(float* acc, int64_t n, const ThresholdRule& rule, bool subtracted, int32_t* at,
                  float* value);
  // Marks the elements from the limit on, a bit each and 64 a word, the last one padded with zeros;
  // returns how many.
  int64_t (*mark)(const float* acc, int64_t n, uint32_t limit, uint64_t* words);
};

GCEXT_DECLARE_TABLE(ThresholdTable, threshold_table)

}  // namespace gcext
