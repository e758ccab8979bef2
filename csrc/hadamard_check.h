// What the operator demands on both floors.
#pragma once

#include "hadamard.h"
#include "stable.h"

namespace gcext {

// log2 of the size of a chunk.
inline int check_hadamard(int64_t n, int64_t size) {
  int level = kMinHadamardLevel;
  while (level < kMaxHadamardLevel && (int64_t{1} << level) < size) ++level;
  GCEXT_CHECK(size == int64_t{1} << level,
              "hadamard: size must be a power of two in [2^6, 2^24], got ", size, ". Round it.");
  GCEXT_CHECK(n % size == 0, "hadamard: values must be whole chunks of ", size, ", got ", n,
              ". Pad with zeros.");
  return level;
}

}  // namespace gcext
