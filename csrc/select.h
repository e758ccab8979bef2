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
// k = 0 asks for the sum alone. What the op writes:
//
//   index    int32, from 2^31 elements on int64; room for k, the first k' rising, the rest anything
//   value    float32, likewise
//   out      memory', the shape of tensor; in place not written where tensor is not finite
//   info     int64[4]: k' | status | where | bits of mu
//
// select_many is a select of every tensor of a list, and gives index and value one after another,
// each with room for its k, and an info for each, int64[m, 4]. In place, where one tensor is not
// finite, the CPU does nothing for any; CUDA, which reports later, refuses that one alone.
//
// A magnitude's *key* is its bit pattern without the sign: keys order as magnitudes do, 0 is zero,
// and from kInfKey on the value is not finite. The math below is shared with cuda/select.cuh, so
// that both floors give the same bytes.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "isa.h"

namespace gcext {

constexpr uint32_t kInfKey = 0x7f800000u;

enum InfoField { kInfoCount, kInfoStatus, kInfoWhere, kInfoMean, kInfoSize };

enum SelectStatus : int64_t {
  kSelectOk = 0,
  kSelectTensor = 1,    // tensor is not finite at `where`; nothing was written
  kSelectMemory = 2,    // memory was not finite at `where`
  kSelectOverflow = 3,  // both were finite, their sum at `where` is not
  kSelectNoMemory = 4,  // the machine has no memory for the candidates
};

// One bin for each exponent. A bin adds up 24-bit mantissas, so 2^40 elements fit, and any order of
// addition gives the same sum.
constexpr int kBins = 255;

GCEXT_HD inline int bin_of(uint32_t key) { return static_cast<int>(key >> 23); }

// The mantissa with its hidden one; denormals have none and share the weight of exponent 1.
GCEXT_HD inline uint32_t mantissa_of(uint32_t key) {
  return (key & 0x7fffffu) | (key >> 23 != 0 ? 0x800000u : 0u);
}

// The bits of sum/count rounded once to float32 (nearest, ties to even), where sum is that of the
// bins, in units of 2^-149. count > 0. The quotient never exceeds the largest summand: no overflow.
//
// 1. Add the bins into one 384-bit integer, low word first.
// 2. Divide it by count, high word first.
// 3. Keep the 24 leading bits of the quotient (fewer below 2^24: a denormal).
// 4. Round by what is left.
//
// On a GPU a single thread does this while all others wait, so empty bins are passed over a run at
// a time, their loads all in flight, and nothing is done bit by bit.
GCEXT_HD inline uint32_t exact_mean_bits(const uint64_t bins[kBins], uint64_t count) {
  constexpr int kWords = 6;  // 64-bit bins shifted by up to 253 bits, and room for carries
  constexpr int kRun = 15;
  static_assert(kBins % kRun == 0, "runs of bins");
  uint64_t word[kWords] = {0, 0, 0, 0, 0, 0};
  for (int first = 0; first < kBins; first += kRun) {
    uint64_t any = 0;
    for (int i = 0; i < kRun; ++i) any |= bins[first + i];
    if (any == 0) continue;
    for (int bin = first; bin < first + kRun; ++bin) {
      const int shift = bin == 0 ? 0 : bin - 1;
      unsigned __int128 carry = static_cast<unsigned __int128>(bins[bin]) << (shift % 64);
      for (int i = shift / 64; carry != 0; ++i) {
        carry += word[i];
        word[i] = static_cast<uint64_t>(carry);
        carry >>= 64;
      }
    }
  }
  uint64_t rest = 0;
  int top = 0;  // the highest word of the quotient that is not 0
  for (int i = kWords - 1; i >= 0; --i) {
    if ((rest | word[i]) == 0) continue;
    const unsigned __int128 part = (static_cast<unsigned __int128>(rest) << 64) | word[i];
    word[i] = static_cast<uint64_t>(part / count);
    rest = static_cast<uint64_t>(part) - word[i] * count;
    if (top == 0 && word[i] != 0) top = i;
  }
  int length = 64 * top;  // of the quotient, in bits
  uint64_t leading = word[top];
  for (int half = 32; half > 0; half /= 2) {
    if (leading >> half == 0) continue;
    leading >>= half;
    length += half;
  }
  length += static_cast<int>(leading);
  const int drop = length > 24 ? length - 24 : 0;
  // What is left, compared with half a unit: below the unit stand `drop` bits, then rest/count.
  uint32_t kept;
  bool half, sticky;
  if (drop > 0) {
    const int low = (drop - 1) / 64, shift = (drop - 1) % 64;  // of the bit below the unit
    uint64_t bits = word[low] >> shift;
    if (top > low) bits |= word[top] << (63 - shift) << 1;
    kept = static_cast<uint32_t>(bits >> 1);
    half = bits & 1;
    sticky = rest != 0 || (word[low] & ((uint64_t{1} << shift) - 1)) != 0;
    for (int i = 0; i < low; ++i) sticky = sticky || word[i] != 0;
  } else {
    kept = static_cast<uint32_t>(word[0]);
    half = rest >= count - rest;
    sticky = rest != count - rest;
  }
  const uint32_t round = half && (sticky || (kept & 1)) ? 1 : 0;
  // kept counts from 2^23 on when normal, so its hidden one adds 1 to the exponent field; a carry
  // out of the mantissa moves on to the next exponent by itself.
  return (static_cast<uint32_t>(drop) << 23) + kept + round;
}

// The bodies compiled per instruction set. A part is a contiguous range that one thread owns;
// `start` is an element's place in its part.
struct Source {
  const float* tensor;
  const float* memory;  // nullptr: acc = a*tensor
  float* out;           // nullptr: acc is not stored
  float a, b;
};

struct Candidates {
  uint32_t* start;  // place in the part, rising
  uint32_t* bits;   // of acc
};

struct SelectTable {
  // acc of [begin, begin+n) stored to out (past the cache if `bypass`); those with key >= low are
  // emitted, placed from `start` on. Returns their number; may write 16 entries more. *highest =
  // max(*highest, keys).
  int64_t (*stream)(const Source& source, int64_t begin, int64_t n, bool bypass, uint32_t start,
                    uint32_t low, Candidates to, uint32_t* highest);
  // Keys within [low, high] to `keys` (16 entries more may be written); *above += the number of
  // greater ones.
  int64_t (*narrow)(const uint32_t* bits, int64_t n, uint32_t low, uint32_t high, uint32_t* keys,
                    int64_t* above);
  // *greater, *equal += candidates above and at `key`; the magnitudes of the greater ones go to the
  // bins.
  void (*tally)(const uint32_t* bits, int64_t n, uint32_t key, int64_t* greater, int64_t* equal,
                uint64_t* bins);
  // The candidates with key >= low as final pairs: index = base + start, value as above (mean_bits:
  // ternary if `ternary`), out mended there unless nullptr. Returns their number.
  int64_t (*emit32)(Candidates from, int64_t n, uint32_t low, int64_t base, bool ternary,
                    uint32_t mean_bits, int32_t* index, float* value, float* out);
  int64_t (*emit64)(Candidates from, int64_t n, uint32_t low, int64_t base, bool ternary,
                    uint32_t mean_bits, int64_t* index, float* value, float* out);
  // The largest key of x.
  uint32_t (*highest)(const float* x, int64_t n);
};

GCEXT_DECLARE_TABLE(SelectTable, select_table)

}  // namespace gcext
