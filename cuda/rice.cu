// rice on CUDA: the sequences of launches. Steps as numbered in rice.cuh.
#include "rice.cuh"

namespace gcext {
namespace {

int64_t blocks_for_numbers(int64_t k, int64_t max_blocks) {
  const int64_t tiles = ceil_div(k, kTile);
  return tiles < max_blocks ? tiles : max_blocks;
}

}  // namespace

int64_t rice_scratch_bytes() { return kRiceBlocks * static_cast<int64_t>(sizeof(PackTotals)); }

cudaError_t launch_pack(const PackLaunch& args, cudaStream_t stream) {
  const Numbers numbers{args.index, args.wide};
  PackTotals* totals = static_cast<PackTotals*>(args.scratch);
  // One block where nothing can travel: the head is written all the same.
  const int64_t blocks = args.k == 0 ? 1 : blocks_for_numbers(args.k, args.max_blocks);
  GCEXT_LAUNCH(rice_measure_kernel, blocks, kRiceThreads, stream, numbers, args.k, args.numel,
               args.info, args.out, pack_bound(args.k, args.numel), totals);
  GCEXT_LAUNCH(rice_write_kernel, blocks, kRiceThreads, stream, numbers, args.value, args.k,
               args.info, args.out, totals);
  return cudaSuccess;
}

cudaError_t launch_unpack(const UnpackLaunch& args, cudaStream_t stream) {
  UnpackTotals* totals = static_cast<UnpackTotals*>(args.scratch);
  const int64_t blocks = blocks_for_numbers(args.k, args.max_blocks);
  const int64_t remainders = args.begin + kTableEntry * ceil_div(args.k, kTile);
  const int64_t unary = remainders + args.remainder_bytes;
  const int64_t signs = args.bytes - 8 - ceil_div(args.k, 8);
  const Streams streams{
      {args.message, args.bytes / 4}, 8 * args.begin, 8 * remainders, 8 * unary, 8 * signs};
  GCEXT_LAUNCH(rice_read_kernel, blocks, kRiceThreads, stream, streams, args.k, args.numel,
               args.scale, args.index, args.wide, args.value, totals);
  GCEXT_LAUNCH(rice_place_kernel, blocks, kRiceThreads, stream, args.k, args.numel, args.index,
               args.wide, totals, args.wrong);
  return cudaSuccess;
}

}  // namespace gcext
