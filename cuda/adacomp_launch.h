// The launcher of adacomp.
#pragma once

#include "../csrc/chunks/adacomp.h"
#include "launch.h"

namespace gcext {

// csrc/chunks/adacomp.h; n > 0. Capacity for n pairs: their number is info[kInfoCount]. Where info
// has a status source.out is a copy of source.memory (in place: untouched), so a caller who swaps
// the two has lost nothing.
struct AdaCompLaunch {
  Source source;  // a = 1
  int64_t n, bin;
  void* index;  // int64 if `wide`, else int32
  bool wide;
  float* value;
  int64_t* info;
  void* scratch;       // adacomp_scratch_bytes(n, bin), 8-byte aligned
  int64_t max_blocks;  // at most kAdaCompBlocks; the result does not depend on it

  GCEXT_HD int64_t bins() const { return n / bin + (n % bin != 0); }
};

constexpr int64_t kAdaCompBlocks = 2048;

int64_t adacomp_scratch_bytes(int64_t n, int64_t bin);
cudaError_t launch_adacomp(const AdaCompLaunch& args, cudaStream_t stream);

}  // namespace gcext
