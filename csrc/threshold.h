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
// out and what is not finite: as in quantize.h. On the CPU index and value have as many entries as
// are sent, on CUDA a capacity for all.
#pragma once

#include "common/isa.h"
#include "common/source.h"

namespace gcext {

struct ThresholdRule {
  uint32_t limit;  // at least 1
  uint32_t scale;

  GCEXT_HD bool sends(float acc) const { return key_of(acc) >= limit; }
  GCEXT_HD float sent(float acc) const {
    return scale == 0 ? acc : float_of(scale | (bits_of(acc) & 0x80000000u));
  }
};

GCEXT_HD inline ThresholdRule threshold_rule(int32_t limit, uint32_t scale) {
  return {limit < 1 ? 1 : static_cast<uint32_t>(limit), scale};
}

// The bodies compiled per instruction set.
struct ThresholdTable {
  // Marks what is sent of n elements, a bit each and 64 a word, the last one padded with zeros;
  // returns how many.
  int64_t (*mark)(const float* acc, int64_t n, uint32_t limit, uint64_t* words);
};

GCEXT_DECLARE_TABLE(ThresholdTable, threshold_table)

}  // namespace gcext
