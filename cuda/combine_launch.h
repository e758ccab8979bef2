// The launchers of combine.
#pragma once

#include "../csrc/combine.h"
#include "launch.h"

namespace gcext {

// A packet and its weight, as the kernel of combine finds them on the device.
struct WeightedPacket {
  PacketView packet;
  double weight;
};

// Packets from the host, which may go once the call is back, to device memory.
cudaError_t launch_take(const WeightedPacket* packets, int64_t m, WeightedPacket* to,
                        cudaStream_t stream);

// out = the weighted sum of m packets, as csrc/combine.h defines it. `packets` is host memory and
// may go once the call is back; `scratch` is device memory for m of them, 8-byte aligned.
struct CombineLaunch {
  const WeightedPacket* packets;
  int64_t m, numel;
  float* out;
  WeightedPacket* scratch;
  int64_t max_blocks;  // at most kCombineBlocks; the result does not depend on it
};

// dense += alpha * the packet, unless info reports an error.
struct CombineAddLaunch {
  PacketView packet;
  float alpha;
  int64_t numel;
  float* dense;
  const int64_t* info;  // may be null
  int64_t max_blocks;
};

// Each owns a run of the elements: as many as run at once on the largest GPU.
constexpr int64_t kCombineBlocks = 528;
constexpr int64_t kCombineAddBlocks = 65536;

cudaError_t launch_combine(const CombineLaunch& args, cudaStream_t stream);
cudaError_t launch_combine_add(const CombineAddLaunch& args, cudaStream_t stream);

}  // namespace gcext
