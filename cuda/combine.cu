// combine on CUDA: the sequence of launches. Steps as numbered in combine.cuh.
#include "combine.cuh"

namespace gcext {
namespace {

// The longest tile of which a warp loads the entries in a go, were they spread evenly.
int64_t combine_tile(const CombineLaunch& args) {
  int64_t most = 0;
  for (int64_t i = 0; i < args.m; ++i) {
    const PacketView& packet = args.packets[i].packet;
    if (!packet.dense && packet.k > most) most = packet.k;
  }
  int64_t tile = kSumTile;
  while (tile > kLeastSumTile && most > args.numel / tile * kEntryRows * kWarp) tile /= 2;
  return tile;
}

}  // namespace

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
  const int64_t tile = combine_tile(args);
  GCEXT_LAUNCH(combine_sum_kernel, blocks_for(args.numel, tile, args.max_blocks), kCombineThreads,
               stream, args.scratch, args.m, args.numel, tile, args.out);
  return cudaSuccess;
}

cudaError_t launch_combine_add(const CombineAddLaunch& args, cudaStream_t stream) {
  if (args.packet.k == 0) return cudaSuccess;
  GCEXT_LAUNCH(combine_add_kernel, blocks_for(args.packet.k, kCombineThreads, args.max_blocks),
               kCombineThreads, stream, args);
  return cudaSuccess;
}

}  // namespace gcext
