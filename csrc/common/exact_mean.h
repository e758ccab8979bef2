// The exact mean of magnitudes, rounded once, whatever the order of addition.
#pragma once

#include "scalar.h"

namespace gcext {

// One bin for each exponent. A bin adds up 24-bit mantissas, so 2^40 elements fit, and any order of
// addition gives the same sum.
constexpr int kBins = 255;

GCEXT_HD inline int bin_of(uint32_t key) { return static_cast<int>(key >> 23); }

// The mantissa with its hidden one; denormals have none and share the weight of exponent 1.
GCEXT_HD inline uint32_t mantissa_of(uint32_t key) {
  return (key & 0x7fffffu) | (key >> 23 != 0 ? 0x800000u : 0u);
}

constexpr int kSumWords = 6;  // 64-bit bins shifted by up to 253 bits, and the carries

// Adds the bins, in units of 2^-149, to a 384-bit integer, low word first; where they are signed,
// in two's complement as the integer then is. On a GPU a single thread does this while all others
// wait, so empty bins are passed over a run at a time, their loads all in flight.
GCEXT_HD inline void add_bins(const uint64_t bins[kBins], bool is_signed,
                              uint64_t word[kSumWords]) {
  constexpr int kRun = 15;
  static_assert(kBins % kRun == 0, "runs of bins");
  for (int first = 0; first < kBins; first += kRun) {
    uint64_t any = 0;
    for (int i = 0; i < kRun; ++i) any |= bins[first + i];
    if (any == 0) continue;
    for (int bin = first; bin < first + kRun; ++bin) {
      const int shift = bin == 0 ? 0 : bin - 1;
      const bool minus = is_signed && bins[bin] >> 63 != 0;
      unsigned __int128 carry = static_cast<unsigned __int128>(minus ? ~bins[bin] + 1 : bins[bin])
                                << (shift % 64);
      for (int i = shift / 64; carry != 0 && i < kSumWords; ++i) {
        const uint64_t low = static_cast<uint64_t>(carry), before = word[i];
        word[i] = minus ? before - low : before + low;
        carry = (carry >> 64) + (minus ? before < low : word[i] < low);
      }
    }
  }
}

// The bits of sum/count rounded once to float32 (nearest, ties to even); word, the sum in units of
// 2^-149, becomes the quotient. count > 0. The quotient must not exceed the largest float32.
//
// 1. Divide by count, high word first.
// 2. Keep the 24 leading bits of the quotient (fewer below 2^24: a denormal).
// 3. Round by what is left.
//
// Nothing is done bit by bit: see add_bins.
GCEXT_HD inline uint32_t rounded_quotient(uint64_t word[kSumWords], uint64_t count) {
  uint64_t rest = 0;
  int top = 0;  // the highest word of the quotient that is not 0
  for (int i = kSumWords - 1; i >= 0; --i) {
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

// The mean of `count` > 0 magnitudes, added up in bins. It never exceeds the largest of them.
GCEXT_HD inline uint32_t exact_mean_bits(const uint64_t bins[kBins], uint64_t count) {
  uint64_t word[kSumWords] = {0, 0, 0, 0, 0, 0};
  add_bins(bins, false, word);
  return rounded_quotient(word, count);
}

// That of numbers of any sign, whose mantissas were added to bins or subtracted, modulo 2^64: of
// fewer than 2^39. A mean that rounds to 0 is +0.
GCEXT_HD inline uint32_t exact_signed_mean_bits(const uint64_t bins[kBins], uint64_t count) {
  uint64_t word[kSumWords] = {0, 0, 0, 0, 0, 0};
  add_bins(bins, true, word);
  const bool minus = word[kSumWords - 1] >> 63 != 0;
  uint64_t carry = 1;
  for (int i = 0; minus && i < kSumWords; ++i) {
    word[i] = ~word[i] + carry;
    carry = carry != 0 && word[i] == 0;
  }
  const uint32_t bits = rounded_quotient(word, count);
  return bits == 0 ? 0 : bits | (minus ? 0x80000000u : 0);
}

}  // namespace gcext
