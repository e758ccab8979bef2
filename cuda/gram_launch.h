// The launcher of gram.
#pragma once

#include "../csrc/gram/gram.h"
#include "combine_launch.h"

namespace gcext {

constexpr int64_t kGramBlocks = 1024;
constexpr int64_t kGramPackets = 8192;  // an element's list stays in shared memory

// All pairwise dot products of m <= kGramPackets packets, as csrc/gram/gram.h defines them. A
// packet's weight is its scale, 0 where it is not ternary. `packets` is host memory and may go once
// the call is back; its indices are not validated: one out of its place is passed over.
struct GramLaunch {
  const WeightedPacket* packets;
  int64_t m, numel;
  double* out;         // m*m
  void* scratch;       // gram_scratch_bytes(m), 16-byte aligned, uninitialised
  int64_t max_blocks;  // at most kGramBlocks; the result does not depend on it
};

int64_t gram_scratch_bytes(int64_t m);
cudaError_t launch_gram(const GramLaunch& args, cudaStream_t stream);

}  // namespace gcext
