// select: fused accumulate and exact top-k (Sattler et al. 2019, STC; Stich et al. 2018, top-k with
// memory).
//
//   acc    = a*tensor + b*memory                      float32, three roundings, no contraction
//   chosen = the k indices of largest |acc|; equal magnitudes: the lower index first; zeros never
//   k'     = |chosen| = min(k, number of non-zeros)
//   mu     = (sum of |acc_i| over chosen) / k'        exact sum, one rounding to float32
//   value_i   = +-mu (ternary) or acc_i (fp32)
//   memory'_i = acc_i - value_i on chosen, acc_i elsewhere
//
// k = 0 asks for the sum alone.
//
// Or the new memory is not written, as it follows from acc and from what was sent of it, which is
// all above the least key and the ties before an index: with `next`, out holds acc, and next what
// was sent (SentField). The next select takes both, and computes memory as it reads acc:
//
//   memory_i = acc_i - (sent? +-mu or acc_i : 0)      the same bits
//
// What the op writes:
//
//   index    int32, from 2^31 elements on int64; k of them, the first k' rising, the rest anything
//   value    float32, likewise
//   out      memory', or acc, the shape of tensor; in place not written where tensor is not finite
//   next     where given, what was sent of out; it may be `sent`, that of memory
//   info     int64[4]: k' | status | where | bits of mu
//
// select_many is a select of every tensor of a list, and gives index and value one after another,
// each with a capacity of its k, and an info for each, int64[m, 4]. In place, where one tensor is
// not finite, the CPU does nothing for any; CUDA, which reports later, refuses that one alone.
//
// A magnitude's *key* is its bit pattern without the sign, see scalar.h.
#pragma once

#include "../common/exact_mean.h"
#include "../common/isa.h"
#include "../common/source.h"

namespace gcext {

// The bodies compiled per instruction set. A part is a contiguous range that one thread owns;
// `start` is an element's place in its part.
struct Candidates {
  uint32_t* start;  // place in the part, rising
  uint32_t* bits;   // of acc
  // Whether to expect so many that to look for those which hold none, and to be wrong, takes longer
  // than to write each vector's.
  bool many = false;
};

// Where pairs go.
struct Pairs {
  void* index;  // int64 if `wide`, else int32
  bool wide;
  float* value;
};

struct SelectTable {
  // acc of [begin, begin+n) stored to out (past the cache if `bypass`); those with key >= low are
  // emitted, placed from `start` on. Returns their number; may write 16 entries more. *highest =
  // max(*highest, keys).
  int64_t (*stream)(const HostSource& source, int64_t begin, int64_t n, bool bypass, uint32_t start,
                    uint32_t low, Candidates to, uint32_t* highest);
  // Keys within [low, high] to `keys` (16 entries more may be written); *above += the number of
  // greater ones.
  int64_t (*narrow)(const uint32_t* bits, int64_t n, uint32_t low, uint32_t high, uint32_t* keys,
                    int64_t* above);
  // *greater, *equal += candidates above and at `key`; the magnitudes of the greater ones go to the
  // bins.
  void (*tally)(const uint32_t* bits, int64_t n, uint32_t key, int64_t* greater, int64_t* equal,
                uint64_t* bins);
  // The candidates with key >= low as final pairs from entry `at` on: index = base + start, value
  // as above (mean_bits: ternary if `ternary`), out updated there unless nullptr. Returns the entry
  // after the last.
  int64_t (*emit)(Candidates from, int64_t n, uint32_t low, int64_t base, bool ternary,
                  uint32_t mean_bits, const Pairs& to, int64_t at, float* out);
  // The largest key of x.
  uint32_t (*highest)(const float* x, int64_t n);
  // What is left of the elements [begin, begin+n) of memory, to the same places of `to`.
  void (*rest)(const float* memory, const int64_t* sent, int64_t begin, int64_t n, float* to);
};

GCEXT_DECLARE_TABLE(SelectTable, select_table)

}  // namespace gcext
