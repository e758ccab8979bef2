// combine on CUDA: the kernels. csrc/combine.h has the contract, combine.cu the sequence.
//
// 1. Take: the packets' pointers and weights travel as kernel arguments, a chunk a launch, into
//    device memory. A copy from the host's pageable memory would wait for the stream.
// 2. Sum: a block owns tiles of kSumTile elements, one at a time, as float64 in shared memory.
//    Packet by packet it finds the first entry in the tile by bisection and adds the entries from
//    there. Indices are distinct within a packet, so no two threads meet between two barriers, and
//    each element is summed in the order of the packets.
// 3. Round to float32, once.
#pragma once

#include "packet.cuh"

namespace gcext {

constexpr int kCombineThreads = 256;
constexpr int kSumTile = 2048;    // 16 KiB of float64: several blocks share a multiprocessor
constexpr int kPacketChunk = 64;  // 2.5 KiB: kernel arguments may take 4 KiB

struct PacketChunk {
  WeightedPacket packet[kPacketChunk];
};

// Step 1, one block.
__global__ void __launch_bounds__(kPacketChunk)
    combine_take_kernel(PacketChunk chunk, int count, WeightedPacket* to) {
  if (static_cast<int>(threadIdx.x) < count) to[threadIdx.x] = chunk.packet[threadIdx.x];
}

// Steps 2 and 3. An index out of its place, which a sound packet does not have, is passed over.
__global__ void __launch_bounds__(kCombineThreads)
    combine_sum_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, float* out) {
  __shared__ double sum[kSumTile];
  for (int64_t tile = blockIdx.x; tile < ceil_div(numel, kSumTile); tile += gridDim.x) {
    const int64_t begin = tile * kSumTile;
    const int64_t size = numel - begin < kSumTile ? numel - begin : kSumTile;
    for (int64_t i = threadIdx.x; i < size; i += kCombineThreads) sum[i] = 0.0;
    __syncthreads();
    for (int64_t j = 0; j < m; ++j) {
      const PacketView p = packets[j].packet;
      const double weight = packets[j].weight;
      if (p.dense) {
        for (int64_t i = threadIdx.x; i < size; i += kCombineThreads)
          sum[i] += weight * static_cast<double>(p.value[begin + i]);
      } else {
        for (int64_t e = first_entry_from(p, begin) + threadIdx.x; e < p.k; e += kCombineThreads) {
          const int64_t i = index_at(p, e) - begin;
          if (i >= size) break;
          if (i >= 0) sum[i] += weight * static_cast<double>(p.value[e]);
        }
      }
      __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < size; i += kCombineThreads)
      out[begin + i] = static_cast<float>(sum[i]);
    // The next tile needs no barrier here: a thread clears the very elements that it rounded.
  }
}

// combine_add_: a thread an entry. Indices are distinct, so no two threads meet.
__global__ void __launch_bounds__(kCombineThreads) combine_add_kernel(CombineAddLaunch a) {
  if (a.info != nullptr && a.info[kInfoStatus] != kSelectOk) return;
  const PacketView& p = a.packet;
  for (int64_t e = grid_first(); e < p.k; e += grid_stride()) {
    const int64_t i = p.dense ? e : index_at(p, e);
    if (i >= 0 && i < a.numel) a.dense[i] += a.alpha * p.value[e];
  }
}

}  // namespace gcext
