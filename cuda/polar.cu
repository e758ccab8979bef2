// polar on CUDA: the sequence of launches. Steps as numbered in polar.cuh.
#include "polar.cuh"

namespace gcext {
namespace {

constexpr int64_t kMostBlocks = 1024;
constexpr int64_t kMostScratch = int64_t{256} << 20;

// The counts of step 1, whole words of them, come first.
int64_t rank_bytes(int64_t block) { return (block / 2 + 1) * 8; }

}  // namespace

int64_t polar_blocks(const PolarGroups& groups) {
  int64_t blocks = kMostScratch / polar_block_bytes(groups.block);
  blocks = blocks < kMostBlocks ? blocks : kMostBlocks;
  return blocks < groups.count ? blocks : groups.count;
}

int64_t polar_scratch_bytes(const PolarGroups& groups, int64_t blocks) {
  return rank_bytes(groups.block) + blocks * polar_block_bytes(groups.block);
}

cudaError_t launch_polar_encode(const PolarEncodeLaunch& args, cudaStream_t stream) {
  uint32_t* before = static_cast<uint32_t*>(args.scratch);
  uint8_t* scratch = static_cast<uint8_t*>(args.scratch) + rank_bytes(args.groups.block);
  GCEXT_LAUNCH(polar_rank_kernel, 1, kRankThreads, stream, args.frozen, args.groups.block, before,
               args.bad);
  if (args.blocks == 0) return cudaSuccess;
  GCEXT_LAUNCH(polar_encode_kernel, args.blocks, kPolarThreads, stream, args, before, scratch);
  return cudaSuccess;
}

cudaError_t launch_polar_decode(const PolarDecodeLaunch& args, cudaStream_t stream) {
  if (args.blocks == 0) return cudaSuccess;
  uint32_t* before = static_cast<uint32_t*>(args.scratch);
  uint8_t* scratch = static_cast<uint8_t*>(args.scratch) + rank_bytes(args.groups.block);
  GCEXT_LAUNCH(polar_rank_kernel, 1, kRankThreads, stream, args.frozen, args.groups.block, before,
               nullptr);
  GCEXT_LAUNCH(polar_decode_kernel, args.blocks, kPolarThreads, stream, args, before, scratch);
  return cudaSuccess;
}

cudaError_t launch_polar_pack(const uint8_t* symbol, int64_t n, uint8_t* packed,
                              cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(polar_pack_kernel, ceil_div(n, kPolarThreads), kPolarThreads, stream, symbol, n,
               packed);
  return cudaSuccess;
}

cudaError_t launch_polar_unpack(const uint8_t* packed, int64_t n, uint8_t* symbol,
                                cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(polar_unpack_kernel, ceil_div(n, kPolarThreads), kPolarThreads, stream, packed, n,
               symbol);
  return cudaSuccess;
}

}  // namespace gcext
