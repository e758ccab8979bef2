// bits on CUDA: the launches.
#include "bits.cuh"

namespace gcext {
namespace {

int64_t blocks_for_threads(int64_t threads, int64_t max_blocks) {
  const int64_t blocks = ceil_div(threads, kBitsThreads);
  return blocks < max_blocks ? blocks : max_blocks;
}

}  // namespace

cudaError_t launch_bits_pack(const uint32_t* value, int64_t n, int b, uint32_t* plane,
                             int64_t max_blocks, cudaStream_t stream) {
  const int64_t words = plane_words(n, b);
  if (words == 0) return cudaSuccess;
  GCEXT_LAUNCH(bits_pack_kernel, blocks_for_threads(words, max_blocks), kBitsThreads, stream, value,
               n, b, plane);
  return cudaSuccess;
}

cudaError_t launch_bits_unpack(const uint32_t* plane, int64_t n, int b, uint32_t* value,
                               int64_t max_blocks, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const BitStream stream_of{plane, plane_words(n, b)};
  GCEXT_LAUNCH(bits_unpack_kernel, blocks_for_threads(n, max_blocks), kBitsThreads, stream,
               stream_of, n, b, value);
  return cudaSuccess;
}

cudaError_t launch_bits_pack_signs(const float* value, int64_t n, uint32_t* plane,
                                   int64_t max_blocks, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(bits_pack_signs_kernel, blocks_for_threads(n, max_blocks), kBitsThreads, stream,
               value, n, plane);
  return cudaSuccess;
}

cudaError_t launch_bits_unpack_signs(const uint8_t* plane, int64_t n, const SignScale& scale,
                                     float* value, int64_t max_blocks, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(bits_unpack_signs_kernel, blocks_for_threads(ceil_div(n, 4), max_blocks),
               kBitsThreads, stream, plane, n, scale, value);
  return cudaSuccess;
}

}  // namespace gcext
