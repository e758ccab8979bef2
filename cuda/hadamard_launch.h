// The launcher of hadamard.
#pragma once

#include "../csrc/hadamard.h"
#include "launch.h"

namespace gcext {

// The rotation of csrc/hadamard.h, or back: n values in chunks of 2^level, n a multiple of that.
struct HadamardLaunch {
  const float* from;
  float* to;
  int64_t n;
  int level;
  uint64_t key;
  bool inverse;
  int64_t max_blocks;  // the result does not depend on it
};

constexpr int64_t kHadamardBlocks = 65536;

cudaError_t launch_hadamard(const HadamardLaunch& args, cudaStream_t stream);

}  // namespace gcext
