// The launcher of select_chunks.
#pragma once

#include "../csrc/chunks/select_chunks.h"
#include "launch.h"

namespace gcext {

// csrc/chunks/select_chunks.h; n > 0. In its in-place form source.memory is source.out, and nothing
// is written where tensor is not finite. Otherwise, where the status is not kSelectOk, out becomes
// a copy of memory: a caller who swaps the two has lost nothing.
struct SelectChunksLaunch {
  Source source;
  Chunks chunks;
  bool in_place, ternary;
  void* index;  // int64 if `wide`, else int32; a capacity of all k's, as value
  bool wide;
  float* value;
  int64_t* info;
  void* scratch;       // select_chunks_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;  // the result does not depend on it
};

constexpr int64_t kSelectChunksBlocks = 65536;

int64_t select_chunks_scratch_bytes(const Chunks& chunks);
cudaError_t launch_select_chunks(const SelectChunksLaunch& args, cudaStream_t stream);

}  // namespace gcext
