// support: k distinct indices of [0, n), drawn from a seed. The same for sender and receiver, so
// that a packet names them in 8 bytes.
//
//   support(seed, k, n) = { P(0), P(1), .. P(k-1) }, sorted        P a permutation of [0, n)
//
// P is a Feistel network (Luby & Rackoff 1988) on the m-bit numbers, m = max(10, bits of n-1),
// which is walked until it falls into [0, n) (cycle walking: Black & Rogaway 2002). That takes
// fewer than two steps on average; for n < 512 more, but 1024 in all: on fewer bits pairs are not
// fair. With `low` the lower m/2 bits, rounded down, of x and `high` the others:
//
//   key_r = mixed(mixed(seed) + r)                                  all mod 2^64
//   for r = 0 .. 7:   r even:  high ^= mixed(key_r ^ low)           cut to high's bits
//                     r odd:   low  ^= mixed(key_r ^ high)          cut to low's bits
//
// P(j) depends on j alone: any thread may draw any of them, in any order. Every P(j) is uniform as
// far as `mixed` is a random function of its key, and so every index has the probability k/n.
// Limits: 0 <= k <= n < 2^63.
#pragma once

#include "common/isa.h"
#include "common/scalar.h"

namespace gcext {

constexpr int kSupportRounds = 8, kSupportBits = 10;

class SupportPermutation {
 public:
  GCEXT_HD SupportPermutation(uint64_t seed, uint64_t n) : n_(n) {
    int bits = kSupportBits;
    while (bits < 63 && n > uint64_t{1} << bits) ++bits;
    low_bits_ = bits / 2;
    low_mask_ = (uint64_t{1} << low_bits_) - 1;
    high_mask_ = (uint64_t{1} << (bits - low_bits_)) - 1;
    for (int r = 0; r < kSupportRounds; ++r)
      key_[r] = mixed(mixed(seed) + static_cast<uint64_t>(r));
  }

  // A step of the walk, which ends below n.
  GCEXT_HD uint64_t step(uint64_t j) const {
    uint64_t low = j & low_mask_, high = j >> low_bits_;
    for (int r = 0; r < kSupportRounds; r += 2) {
      high ^= mixed(key_[r] ^ low) & high_mask_;
      low ^= mixed(key_[r + 1] ^ high) & low_mask_;
    }
    return high << low_bits_ | low;
  }

  // P(j), j < n.
  GCEXT_HD uint64_t operator()(uint64_t j) const {
    do j = step(j);
    while (j >= n_);
    return j;
  }

  GCEXT_HD uint64_t n() const { return n_; }

 private:
  uint64_t n_, low_mask_, high_mask_, key_[kSupportRounds];
  int low_bits_;
};

// The bodies compiled per instruction set.
struct SupportTable {
  // A step from each of n numbers.
  void (*step)(const SupportPermutation& permutation, int64_t n, uint64_t* x);
};

GCEXT_DECLARE_TABLE(SupportTable, support_table)

}  // namespace gcext
