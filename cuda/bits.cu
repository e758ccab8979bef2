// bits on CUDA: csrc/bits.h has the layout. Of unpacked signs a thread owns four, half a byte: one
// store. Traffic of n values: n/8 bytes read, 4*n written.
#include "bits_launch.h"
#include "common.cuh"

namespace gcext {

constexpr int kBitsThreads = 256;

// The division costs as much as the store: there is none where one scale serves all.
__global__ void __launch_bounds__(kBitsThreads)
    bits_unpack_signs_kernel(const uint8_t* plane, int64_t n, float scale, const float* scales,
                             int64_t run, float* value) {
  const bool aligned = is_aligned(value);
  for (int64_t q = grid_first(); q < ceil_div(n, 4); q += grid_stride()) {
    const int64_t i = 4 * q;
    const float own = scales == nullptr ? scale : scales[i / run];
    const uint32_t four = static_cast<uint32_t>(plane[q / 2]) >> (q % 2 * 4);
    Quad quad;
    for (int c = 0; c < 4; ++c) quad.x[c] = float_of(bits_of(own) ^ (four >> c & 1) << 31);
    store_quad(value, i, n, aligned, quad);
  }
}

// The launches.

cudaError_t launch_unpack_signs(const uint8_t* plane, int64_t n, float scale, const float* scales,
                                int64_t run, float* value, int64_t max_blocks,
                                cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(bits_unpack_signs_kernel, blocks_for(ceil_div(n, 4), kBitsThreads, max_blocks),
               kBitsThreads, stream, plane, n, scale, scales, run, value);
  return cudaSuccess;
}

}  // namespace gcext
