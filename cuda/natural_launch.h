// The launchers of natural.
#pragma once

#include "../csrc/natural.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kNaturalBlocks = 65536;

// csrc/natural.h; n > 0. Where info has a status source.out is a copy of source.memory (in place:
// untouched), so a caller who swaps the two has lost nothing, and powers are anything.
struct NaturalLaunch {
  Source source;  // a = 1
  int64_t n;
  float scale;
  uint64_t key;    // mixed(seed)
  int16_t* power;  // n
  int64_t* info;
  void* scratch;       // natural_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;  // the result does not depend on it
};
int64_t natural_scratch_bytes();
cudaError_t launch_natural(const NaturalLaunch& args, cudaStream_t stream);

// The values of n powers; of one that is out of range, 0.
cudaError_t launch_power_values(const int16_t* power, int64_t n, float scale, float* value,
                                int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
