// bin_means on CUDA: the sequence of launches. Steps as numbered in bin_means.cuh.
#include "bin_means.cuh"

namespace gcext {

int64_t bin_means_scratch_bytes(int64_t capacity, int bits) {
  return static_cast<int64_t>(sizeof(BinRule)) + (int64_t{8 * kBinSlots} << bits) +
         ceil_div(capacity, kBinCell) * static_cast<int64_t>(sizeof(BinSums));
}

cudaError_t launch_bin_means(const BinMeansLaunch& args, cudaStream_t stream) {
  BinScratch scratch = {static_cast<BinRule*>(args.scratch), nullptr, nullptr};
  scratch.bins = reinterpret_cast<uint64_t*>(scratch.rule + 1);
  scratch.sums = reinterpret_cast<BinSums*>(scratch.bins + (int64_t{kBinSlots} << args.bits));
  const int64_t k = args.capacity > 0 ? args.capacity : 1;
  const int64_t most = args.max_blocks;
  const int64_t cell_blocks = blocks_for(ceil_div(k, kBinCell) * kLanes, kBinThreads, most);
  GCEXT_LAUNCH(bin_sums_kernel, cell_blocks, kBinThreads, stream, args, scratch);
  GCEXT_LAUNCH(bin_rule_kernel, 1, kWarp, stream, args, scratch);
  GCEXT_LAUNCH(bin_codes_kernel, blocks_for(ceil_div(k, 8), kBinThreads, most), kBinThreads, stream,
               args, scratch);
  GCEXT_LAUNCH(bin_table_kernel, 1, 1 << args.bits, stream, args, scratch);
  if (args.out == nullptr) return cudaSuccess;
  GCEXT_LAUNCH(bin_subtract_kernel, blocks_for(k, kBinThreads, most), kBinThreads, stream, args,
               scratch);
  return cudaSuccess;
}

}  // namespace gcext
