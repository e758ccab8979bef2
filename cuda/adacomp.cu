// adacomp on CUDA: the sequence of launches. Steps as numbered in adacomp.cuh.
#include "adacomp.cuh"

namespace gcext {

int64_t adacomp_scratch_bytes(int64_t n, int64_t bin) {
  return static_cast<int64_t>(sizeof(AdaCompState)) + 8 * kAdaCompBlocks + 4 * ceil_div(n, bin);
}

cudaError_t launch_adacomp(const AdaCompLaunch& args, cudaStream_t stream) {
  AdaCompScratch scratch = {static_cast<AdaCompState*>(args.scratch), nullptr, nullptr};
  scratch.counts = reinterpret_cast<uint64_t*>(scratch.state + 1);
  scratch.gmax = reinterpret_cast<uint32_t*>(scratch.counts + kAdaCompBlocks);
  const int64_t blocks = blocks_for(args.n, kAdaCompThreads, args.max_blocks);
  GCEXT_LAUNCH(adacomp_clear_kernel, 1, kAdaCompThreads, stream, scratch.state);
  GCEXT_LAUNCH(adacomp_bins_kernel, blocks, kAdaCompThreads, stream, args, scratch);
  GCEXT_LAUNCH(adacomp_settle_kernel, 1, kAdaCompThreads, stream, args, scratch, blocks);
  GCEXT_LAUNCH(adacomp_emit_kernel, blocks, kAdaCompThreads, stream, args, scratch);
  return cudaSuccess;
}

}  // namespace gcext
