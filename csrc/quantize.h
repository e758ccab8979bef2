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
//   level_i = floor(r_i + u_i)                         float64; u_i uniform in [0, 1), a multiple
//                                                      of 2^-32, from (seed, i)
//   sent_i = sign(acc_i) * norm * level_i / steps      float64, rounded once to float32
//
// The mean of sent_i over seeds is acc_i, unless clipped, to 2^-32 of a step and that one rounding.
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
// out_i = acc_i - sent_i, one rounding. out may be memory: then sums are validated before any is
// written, so that where one is not finite the memory is what it was. Another out is anything
// there; on CUDA, which reports it deferred, either is a copy of memory.
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

// Where the order of addition matters to nothing: the sums, and what they are of, fit the first
// cache together.
constexpr int64_t kPiece = 1024;

// The n elements cut into buckets, and each bucket into cells.
struct Cells {
  int64_t n, bucket, most, per_bucket;

  GCEXT_HD Cells(int64_t elements, int64_t size, int64_t cell = kCell)
      : n(elements), bucket(size), most(cell), per_bucket((size + cell - 1) / cell) {}

  GCEXT_HD int64_t buckets() const { return (n + bucket - 1) / bucket; }
  GCEXT_HD int64_t count() const {
    return n / bucket * per_bucket + (n % bucket + most - 1) / most;
  }
  GCEXT_HD int64_t bucket_of(int64_t cell) const { return cell / per_bucket; }
  GCEXT_HD int64_t begin(int64_t cell) const {
    return bucket_of(cell) * bucket + cell % per_bucket * most;
  }
  GCEXT_HD int64_t size(int64_t cell) const {
    const int64_t end = (bucket_of(cell) + 1) * bucket, until = end < n ? end : n;
    return until - begin(cell) < most ? until - begin(cell) : most;
  }
};

struct LevelRule {
  uint64_t key;  // mixed(seed)
  int32_t steps;
};

// The level of |x| <= norm, norm > 0; per_norm = steps / norm, and u in units of 2^-32. Never above
// steps: the product is at most steps (1 + 2^-52), and u at most 1 - 2^-32.
GCEXT_HD inline int32_t level_of(double magnitude, double per_norm, uint32_t u) {
  return static_cast<int32_t>(magnitude * per_norm + u * 0x1p-32);
}

GCEXT_HD inline float sent_of(float norm, int32_t level, int32_t steps) {
  return static_cast<float>(static_cast<double>(norm) * level / steps);
}

// What sent_of gives, where steps are odd, by one product with step = norm / steps in float64,
// which errs by less than 2^-51. norm * level / steps is a quotient of at most 39 by 15 bits: it is
// at least 2^-40 away from every midpoint of two float32, unless it is one; and it is none, as
// where odd steps divide norm * level, the quotient is a multiple of the norm's unit and not above
// the norm.
GCEXT_HD inline float sent_by(double step, int32_t level) {
  return static_cast<float>(step * level);
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

// Bodies of levels that are held as `Level`; n is at most kCell.
template <class Level>
struct LevelBodies {
  // The levels of elements that share a norm, the first being element `index`, and what a norm is
  // fitted to them by. Returns how many are not zero.
  int64_t (*draw)(const float* acc, int64_t n, float norm, const LevelRule& rule, int64_t index,
                  Ahead ahead, Level* level, FitSums* fit);
  // acc becomes acc - sent.
  void (*subtract)(float* acc, int64_t n, float norm, int32_t steps, const Level* level);
  // The levels that are not zero, and their places, the first being `begin`. Returns how many. Each
  // output is kEmitSlack longer.
  int64_t (*emit)(const Level* drawn, int64_t n, int32_t begin, int32_t* at, int16_t* level);
};

constexpr int64_t kEmitSlack = 16;  // entries behind the last one that emit may overwrite

// The bodies compiled per instruction set; n is at most kCell.
struct QuantizeTable {
  // acc of [begin, begin+n); returns the largest key.
  uint32_t (*accumulate)(const HostSource& source, int64_t begin, int64_t n, float* acc);
  // Packs the signs, and adds the magnitudes to the bins; top is the largest key.
  void (*tally_signs)(const float* acc, int64_t n, uint32_t top, Ahead ahead, uint8_t* bits,
                      uint64_t* bins);
  // acc becomes acc - sent.
  void (*subtract_signs)(float* acc, int64_t n, float scale);
  double (*squares)(const float* acc, int64_t n);
  LevelBodies<int8_t> narrow;  // steps < 128
  LevelBodies<int16_t> wide;
  // Copies, past the cache where the processor allows it; others see it when the caller's part of
  // parallel_parts has ended.
  void (*bypass)(const void* from, size_t bytes, void* to);
};

GCEXT_DECLARE_TABLE(QuantizeTable, quantize_table)

}  // namespace gcext
