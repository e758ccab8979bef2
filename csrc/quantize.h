// quantize: dense codes of a sum, fused with error feedback.
//
//   acc = tensor + decay*memory                        float32, two roundings, no contraction
//
// sign (Seide et al. 2014; Bernstein et al. 2018; Karimireddy et al. 2019)
//
//   scale = (sum of |acc_i|) / n                       exact sum, one rounding to float32
//   sent_i = -scale if acc_i < 0 else scale            so a zero of either sign counts as positive
//
// levels (QSGD, Alistarh et al. 2017; largest: TernGrad, Wen et al. 2017, where steps = 1)
//
//   norm = |acc|_2 of each bucket, rounded once, at most the greatest float32
//          largest: max |acc|, and with clip > 0 at most clip * sqrt(mean acc^2)
//   r_i = min(|acc_i|, norm) * (steps / norm)          float64, two roundings
//   level_i = floor(r_i) + (u_i < r_i - floor(r_i))    u_i uniform in [0, 1), from (seed, i);
//                                                      at most steps
//   sent_i = sign(acc_i) * norm * level_i / steps      float64, rounded once to float32
//
// The mean of sent_i over seeds is acc_i, unless clipped, to 2^-52 of a step and that one rounding.
//
//   fit: what travels instead of the norm, and sent_i is made of, is that of least squares,
//
//   norm' = steps * (sum of |acc_i| level_i) / (sum of level_i^2)     0 where no level is not 0
//          float64 sums of each bucket, rounded once, at most the greatest float32
//
// So |acc - sent| never exceeds |acc|, and where the variance of the unbiased levels is at most
// omega squared norms this is in the mean a contraction by 1 / (1 + omega), as error feedback
// needs.
//
// out_i = acc_i - sent_i, one rounding. out may be memory. Sums are computed twice rather than
// kept: first to validate them, then to write out. So where a sum is not finite nothing was
// written; but on CUDA, which reports it deferred, out then becomes a copy of memory.
//
// sign, with `next`: out_i = acc_i, and next is what was sent of it, all of it; the next call takes
// both, as `sent` and memory, and subtracts as it reads: common/source.h. One pass, and the same
// bits; out is not memory, and where a sum is not finite it is anything.
//
//   sign    bits uint8 [(n+7)/8]: element i is bit i & 7 of byte i >> 3, a one is negative
//           info int64[4], see select.h: n | status | where | bits of scale
//   levels  norms float32, one a bucket (fit: norm');  at int32 (int64 from 2^31
//   elements on), rising, and
//           level int16: the elements whose level is not 0
//           info: number of these | status | where | 0
//
// Limits: 2^39 elements; steps < 2^15. Math below is shared with the device.
#pragma once

#include <math.h>

#include "common/exact_mean.h"
#include "common/isa.h"
#include "common/source.h"

namespace gcext {

constexpr int64_t kCell = 4096;  // elements that are summed at a time, in a fixed order

// The n elements cut into buckets, and each bucket into cells.
struct Cells {
  int64_t n, bucket, per_bucket;

  GCEXT_HD Cells(int64_t elements, int64_t size)
      : n(elements), bucket(size), per_bucket((size + kCell - 1) / kCell) {}

  GCEXT_HD int64_t buckets() const { return (n + bucket - 1) / bucket; }
  GCEXT_HD int64_t count() const {
    return n / bucket * per_bucket + (n % bucket + kCell - 1) / kCell;
  }
  GCEXT_HD int64_t bucket_of(int64_t cell) const { return cell / per_bucket; }
  GCEXT_HD int64_t begin(int64_t cell) const {
    return bucket_of(cell) * bucket + cell % per_bucket * kCell;
  }
  GCEXT_HD int64_t size(int64_t cell) const {
    const int64_t end = (bucket_of(cell) + 1) * bucket, until = end < n ? end : n;
    return until - begin(cell) < kCell ? until - begin(cell) : kCell;
  }
};

struct LevelRule {
  uint64_t key;  // mixed(seed)
  int32_t steps;
};

// Uniform in [0, 1), a multiple of 2^-52.
GCEXT_HD inline double uniform(uint64_t key, uint64_t index) {
  return static_cast<double>(mixed(key ^ mixed(index)) >> 12) * 0x1p-52;
}

// The level of |x| <= norm, norm > 0; per_norm = steps / norm. Without a branch.
GCEXT_HD inline int32_t level_of(double magnitude, int32_t steps, double per_norm, double u) {
  const double r = magnitude * per_norm;
  const int32_t whole = static_cast<int32_t>(r);
  const int32_t level = whole + static_cast<int32_t>(u < r - whole);
  return level < steps ? level : steps;
}

GCEXT_HD inline float sent_of(float norm, int32_t level, int32_t steps) {
  return static_cast<float>(static_cast<double>(norm) * level / steps);
}

struct Norm {
  bool largest;
  double clip;
};

// The norm of a bucket of n elements, from its squares' sum and its largest key.
GCEXT_HD inline float norm_of(const Norm& norm, int64_t n, double squares, uint32_t top) {
  constexpr double kMost = 0x1.fffffep127;
  const double root = sqrt(norm.largest ? squares / static_cast<double>(n) : squares);
  const double bound = norm.largest ? norm.clip * root : root;
  const float cut = static_cast<float>(bound < kMost ? bound : kMost);
  if (!norm.largest) return cut;
  const float largest = float_of(top);
  return norm.clip > 0 && cut < largest ? cut : largest;
}

// The sums that a cell or a bucket is fitted by.
struct FitSums {
  double dot;      // of |acc| and level
  double squares;  // of the levels: of a cell exact
};

// norm', from its bucket's sums. Not 0 where a level is not: the least of these |acc| is its bound.
GCEXT_HD inline float fitted_norm(const FitSums& sums, int32_t steps) {
  constexpr double kMost = 0x1.fffffep127;
  if (!(sums.squares > 0)) return 0;
  const double norm = steps * sums.dot / sums.squares;
  return static_cast<float>(norm < kMost ? norm : kMost);
}

// The bodies compiled per instruction set; n is at most kCell.
struct QuantizeTable {
  // acc of [begin, begin+n); returns the largest key.
  uint32_t (*accumulate)(const Source& source, int64_t begin, int64_t n, float* acc);
  // Packs the signs, and adds the magnitudes to the bins; top is the largest key.
  void (*tally_signs)(const float* acc, int64_t n, uint32_t top, uint8_t* bits, uint64_t* bins);
  // acc becomes acc - sent.
  void (*subtract_signs)(float* acc, int64_t n, float scale);
  double (*squares)(const float* acc, int64_t n);
  // The levels of elements that share a norm, the first being element `index`. Returns how many
  // are not zero.
  int64_t (*levels)(const float* acc, int64_t n, float norm, const LevelRule& rule, int64_t index,
                    int16_t* level);
  FitSums (*fit)(const float* acc, int64_t n, const int16_t* level);
  void (*subtract_levels)(float* acc, int64_t n, float norm, int32_t steps, const int16_t* level);
  // Copies, past the cache where the processor and the alignment of `to` allow it.
  void (*bypass)(const float* from, int64_t n, float* to);
};

GCEXT_DECLARE_TABLE(QuantizeTable, quantize_table)

}  // namespace gcext
