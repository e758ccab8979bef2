// bits on CUDA: the launch.
#include "bits.cuh"

namespace gcext {
cudaError_t launch_bits_unpack_signs(const uint8_t* plane, int64_t n, const SignScale& scale,
                                     float* value, int64_t max_blocks, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(bits_unpack_signs_kernel, blocks_for(ceil_div(n, 4), kBitsThreads, max_blocks),
               kBitsThreads, stream, plane, n, scale, value);
  return cudaSuccess;
}

}  // namespace gcext
