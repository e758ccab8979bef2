// The launcher of select.
#pragma once

#include "launch.h"

namespace gcext {

// The select of csrc/select.h. In its in-place form source.memory is source.out, and nothing is
// written where tensor is not finite; a plain top-k has neither.
struct SelectLaunch {
  Source source;
  int64_t n, k;   // 0 < k <= n, or both 0
  bool in_place;  // out is also the memory
  bool ternary;
  void* index;  // k entries, int64 if `wide`, else int32
  bool wide;
  float* value;  // k entries
  int64_t* info;
  void* scratch;       // select_scratch_bytes(), 8-byte aligned, uninitialised
  int64_t max_blocks;  // at most kSelectBlocks; the result does not depend on it
};

// A few blocks for each multiprocessor of the largest GPU; each owns a contiguous range of
// elements.
constexpr int64_t kSelectBlocks = 1024;

int64_t select_scratch_bytes();
cudaError_t launch_select(const SelectLaunch& args, cudaStream_t stream);

}  // namespace gcext
