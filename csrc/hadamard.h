// hadamard: the randomised Hadamard rotation, twice, in place of a random orthogonal matrix.
//
//   forward    y = H D2 H D1 x / M        M = 2^m values a chunk, H the Walsh-Hadamard matrix
//   inverse    x = D1 H D2 H y / M        D1, D2 diagonal, random signs
//
// Once (H D x / sqrt(M)) turns a vector of few non-zeros into one of few magnitudes, on which a
// one-bit estimate is biased for every draw of D alike; the second round mixes those. Two rounds
// also make the norm's factor 1/M a power of two, so that only the additions round.
//
// Chunks are rotated for themselves. The sign of value i of chunk c in round r is bit i % 64 of
// mixed(mixed(seed) ^ mixed(2*(c*M/64 + i/64) + r)), mixed being SplitMix64's finaliser.
// Butterflies run from stride 1 up; each value is a fixed tree of float32 additions: the same bits
// everywhere.
#pragma once

#include "common/isa.h"
#include "common/scalar.h"

namespace gcext {

// The signs of values 64*word and on, counted over all chunks; round 0 or 1, key = mixed(seed).
GCEXT_HD inline uint64_t hadamard_signs(uint64_t key, int64_t word, int round) {
  return mixed(key ^ mixed(2 * static_cast<uint64_t>(word) + static_cast<uint64_t>(round)));
}

// The factors before the first and before the second transform, 1/M together: what is in
// between stays near the size of x.
GCEXT_HD inline float hadamard_factor(int level, int round) {
  return 1.0f / static_cast<float>(int64_t{1} << ((level + 1 - round) / 2));
}

struct HadamardTable {
  // x *= factor, negated where its bit of `sign` is set; n a multiple of 64.
  void (*flip)(float* x, int64_t n, const uint64_t* sign, float factor);
  // x = H x, n = 2^m >= 64 values.
  void (*transform)(float* x, int64_t n);
};

GCEXT_DECLARE_TABLE(HadamardTable, hadamard_table)

}  // namespace gcext
