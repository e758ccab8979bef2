// combine on CUDA: the sequence of launches. Steps as numbered in combine.cuh.
#include "combine.cuh"

namespace gcext {

cudaError_t launch_take(const WeightedPacket* packets, int64_t m, WeightedPacket* to,
                        cudaStream_t stream) {
  for (int64_t at = 0; at < m; at += kPacketChunk) {
    const int count = static_cast<int>(m - at < kPacketChunk ? m - at : kPacketChunk);
    PacketChunk chunk = {};
    for (int i = 0; i < count; ++i) chunk.packet[i] = packets[at + i];
    GCEXT_LAUNCH(combine_take_kernel, 1, kPacketChunk, stream, chunk, count, to + at);
  }
  return cudaSuccess;
}

cudaError_t launch_combine(const CombineLaunch& args, cudaStream_t stream) {
  if (args.numel == 0) return cudaSuccess;
  if (const cudaError_t error = launch_take(args.packets, args.m, args.scratch, stream);
      error != cudaSuccess)
    return error;
  GCEXT_LAUNCH(combine_sum_kernel, blocks_for(args.numel, kSumTile, args.max_blocks),
               kCombineThreads, stream, args.scratch, args.m, args.numel, args.out);
  return cudaSuccess;
}

cudaError_t launch_combine_add(const CombineAddLaunch& args, cudaStream_t stream) {
  if (args.packet.k == 0) return cudaSuccess;
  GCEXT_LAUNCH(combine_add_kernel, blocks_for(args.packet.k, kCombineThreads, args.max_blocks),
               kCombineThreads, stream, args);
  return cudaSuccess;
}

}  // namespace gcext
