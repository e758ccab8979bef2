// rotate: the randomised Hadamard rotation, twice, in place of a random orthogonal matrix; and the
// scales of the one-bit estimate that is built on it (Vargaftik et al. 2022, EDEN,
// arXiv:2108.08842).
//
//   forward    y = H D2 H D1 x / M        M = 2^m values a chunk, H the Walsh-Hadamard matrix
//   inverse    x = D1 H D2 H y / M        D1, D2 diagonal, random signs
//
// Once (H D x / sqrt(M)) turns a vector of few non-zeros into one of few magnitudes, on which a
// one-bit estimate is biased for every draw of D alike; the second round mixes those. Two rounds
// also make the norm's factor 1/M a power of two, so that only the additions round.
//
// A vector is rotated in chunks, each for itself: all of `size` values but the last, which is of
// the least power of two that holds the rest, from `least` on, and padded with zeros
// (RotateChunks). The sign of value i of chunk c in round r is bit i % 64 of mixed(key ^
// mixed(2*(i/64) + r)), with key = mixed(seed + c * 0x9e3779b97f4a7c15), mixed being SplitMix64's
// finaliser. Butterflies run from stride 1 up; each value is a fixed tree of float32 additions: the
// same bits everywhere.
//
//   rotate        y, and |x|^2 of each chunk
//   rotate_scale  s = |x|^2 / <y, c> of each chunk, 0 where that is not positive; c the symbols as
//                 plus and minus 1. The estimate s R^-1 c is unbiased.
//   rotate_back   the estimate s R^-1 c
//   rotate_fit    s' = <x, e> / (s M), e the estimate: least squares' factor of R^-1 c, 0 where
//                 that is not positive; and the estimate s' R^-1 c
//
// Symbols are packed, 8 a byte, lowest bit first; a one is -1. Dot products are sums of exact
// float64 products by a fixed tree: the first half of a chunk plus its second half, and so on.
#pragma once

#include "common/isa.h"
#include "common/scalar.h"
#include "common/source.h"

namespace gcext {

constexpr int kMinRotateLevel = 6, kMaxRotateLevel = 20;

// The chunks of n values.
struct RotateChunks {
  int64_t n, size, count, last;  // last: the size of the last chunk
  RotateChunks(int64_t n, int64_t size, int64_t least)
      : n(n), size(size), count(n / size + (n % size != 0)), last(least) {
    const int64_t rest = n - (count - 1) * size;
    while (last < rest) last *= 2;
  }
  GCEXT_HD int64_t symbols() const { return count == 0 ? 0 : (count - 1) * size + last; }
  GCEXT_HD int64_t start(int64_t chunk) const { return chunk * size; }
  GCEXT_HD int64_t size_of(int64_t chunk) const { return chunk + 1 < count ? size : last; }
  // Values of the vector in a chunk; the others are its padding.
  GCEXT_HD int64_t values_of(int64_t chunk) const {
    const int64_t rest = n - start(chunk);
    return rest < size ? rest : size;
  }
};

GCEXT_HD inline uint64_t rotate_key(uint64_t seed, int64_t chunk) {
  return mixed(seed + 0x9e3779b97f4a7c15u * static_cast<uint64_t>(chunk));
}

// The signs of values 64*word and on of a chunk; round 0 or 1.
GCEXT_HD inline uint64_t rotate_signs(uint64_t key, int64_t word, int round) {
  return mixed(key ^ mixed(2 * static_cast<uint64_t>(word) + static_cast<uint64_t>(round)));
}

// log2 of a chunk's size.
GCEXT_HD inline int rotate_level(int64_t size) {
  int level = 0;
  while (int64_t{1} << level < size) ++level;
  return level;
}

// The factors before the first and before the second transform, 1/M together: what is in
// between stays near the size of x.
GCEXT_HD inline float rotate_factor(int level, int round) {
  return 1.0f / static_cast<float>(int64_t{1} << ((level + 1 - round) / 2));
}

// The scales above, of a chunk.
GCEXT_HD inline float rotate_unbiased(double norm, double agreement) {
  return agreement > 0 ? static_cast<float>(norm / agreement) : 0.0f;
}

GCEXT_HD inline float rotate_fitted(float scale, double dot, int64_t size) {
  if (!(scale > 0)) return scale;
  return dot > 0
             ? static_cast<float>(dot / (static_cast<double>(scale) * static_cast<double>(size)))
             : 0.0f;
}

struct RotateTable {
  // x *= factor, negated where its bit of `sign` is set (null: nowhere); n a multiple of 64.
  void (*flip)(float* x, int64_t n, const uint64_t* sign, float factor);
  // x = H x, n = 2^m >= 64 values.
  void (*transform)(float* x, int64_t n);
  // x = scale, negated where the symbol is a one; n a multiple of 64.
  void (*spread)(const uint8_t* symbols, int64_t n, float scale, float* x);
  // <x, y> by the tree; n = 2^m >= 64.
  double (*dot)(const float* x, const float* y, int64_t n);
};

GCEXT_DECLARE_TABLE(RotateTable, rotate_table)

}  // namespace gcext
