// The launcher of robust.
#pragma once

#include "../csrc/robust.h"
#include "combine_launch.h"

namespace gcext {

constexpr int64_t kRobustBlocks = 528;    // all that an H200 holds at once
constexpr int64_t kRobustPackets = 1024;  // their entries' places are in shared memory

// The trimmed mean of m <= kRobustPackets packets as csrc/robust.h defines it; numel > 0. Those
// that are dense come first; weights are not read. Indices are not validated: one out of its place
// is passed over. `packets` is host memory and may go once the call is back.
struct RobustLaunch {
  const WeightedPacket* packets;
  int64_t dense, m, drop, numel;
  float* out;
  WeightedPacket* scratch;  // of m, on the device, 8-byte aligned
  int64_t max_blocks;       // the result does not depend on it
};
cudaError_t launch_trimmed_mean(const RobustLaunch& args, cudaStream_t stream);

}  // namespace gcext
