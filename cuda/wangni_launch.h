// The launcher of wangni.
#pragma once

#include "../csrc/wangni.h"
#include "launch.h"

namespace gcext {

// csrc/wangni.h; n > 0. Capacity for n pairs of either kind: how many there are is in info and
// drawn. Where these have a status source.out is a copy of source.memory (in place: untouched), so
// a caller who swaps the two has lost nothing.
struct WangniLaunch {
  Source source;  // a = 1
  int64_t n;
  WangniRule rule;
  void *index, *at;  // int64 if `wide`, else int32
  bool wide;
  float *value, *sent;
  int64_t *info, *drawn;
  void* scratch;       // wangni_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;  // at most kWangniBlocks; the result does not depend on it
};

constexpr int64_t kWangniBlocks = 2048;

int64_t wangni_scratch_bytes();
cudaError_t launch_wangni(const WangniLaunch& args, cudaStream_t stream);

}  // namespace gcext
