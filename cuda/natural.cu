// natural on CUDA: the sequence of launches. Steps as numbered in natural.cuh.
#include "natural.cuh"

namespace gcext {
int64_t natural_scratch_bytes() { return sizeof(NaturalState); }

cudaError_t launch_natural(const NaturalLaunch& args, cudaStream_t stream) {
  NaturalState* state = static_cast<NaturalState*>(args.scratch);
  const int32_t most = most_power(args.scale);
  const int64_t pair_blocks = blocks_for(ceil_div(args.n, 2), kNaturalThreads, args.max_blocks);
  GCEXT_LAUNCH(natural_clear_kernel, 1, 1, stream, state);
  GCEXT_LAUNCH(natural_draw_kernel, pair_blocks, kNaturalThreads, stream, args.source, args.n,
               args.key, most, args.power, state);
  GCEXT_LAUNCH(natural_report_kernel, 1, 1, stream, args.n, state, args.info);
  if (args.source.out == nullptr) return cudaSuccess;
  const int64_t blocks = blocks_for(args.n, kNaturalThreads, args.max_blocks);
  GCEXT_LAUNCH(natural_subtract_kernel, blocks, kNaturalThreads, stream, args.source, args.n,
               args.scale, args.power, state);
  return cudaSuccess;
}

cudaError_t launch_power_values(const int16_t* power, int64_t n, float scale, float* value,
                                int64_t max_blocks, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(power_values_kernel, blocks_for(n, kNaturalThreads, max_blocks), kNaturalThreads,
               stream, power, n, scale, value);
  return cudaSuccess;
}

}  // namespace gcext
