// codes on CUDA: the launch.
#include "codes.cuh"

namespace gcext {
cudaError_t launch_code_values(const CodeValues& args, int64_t max_blocks, cudaStream_t stream) {
  if (args.n == 0) return cudaSuccess;
  GCEXT_LAUNCH(code_values_kernel, blocks_for(ceil_div(args.n, 4), kCodesThreads, max_blocks),
               kCodesThreads, stream, args);
  return cudaSuccess;
}

}  // namespace gcext
