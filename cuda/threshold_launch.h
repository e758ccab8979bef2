// The launcher of threshold.
#pragma once

#include "../csrc/threshold.h"
#include "launch.h"

namespace gcext {

// csrc/threshold.h; n > 0. Capacity for n pairs: their number is info[kInfoCount]. Where info has a
// status source.out is a copy of source.memory (in place: untouched), so a caller who swaps the two
// has lost nothing.
struct ThresholdLaunch {
  Source source;  // a = 1
  int64_t n;
  const int32_t* limit;
  uint32_t scale;
  void* index;  // int64 if `wide`, else int32
  bool wide;
  float* value;
  int64_t *info, *next;  // next: null where out gets what is left
  void* scratch;         // threshold_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;    // at most kThresholdBlocks; the result does not depend on it
};

constexpr int64_t kThresholdBlocks = 2048;

int64_t threshold_scratch_bytes();
cudaError_t launch_threshold(const ThresholdLaunch& args, cudaStream_t stream);

}  // namespace gcext
