// codes on CUDA: the kernel and its launch. csrc/codes.h has the contract.
//
//   1. Where one table serves all elements, the block makes it in shared memory: that of dynamic8,
//      the values of the one bucket, or what its one scale makes of every code.
//   2. A thread owns four values, one store. Their codes are read byte by byte: they lie side by
//      side, so that all but the first of a line come from the cache.
//
// Traffic of n values: n*width/8 bytes and the scales read, 4*n written.
#include "codes_launch.h"
#include "dynamic8.cuh"

namespace gcext {

constexpr int kCodesThreads = 256;
static_assert(kCodesThreads >= 1 << kMostTableBits, "a thread makes at most one entry");

__device__ inline uint32_t code_at(const uint8_t* bits, int64_t i, int width) {
  const int64_t first = i * width;
  const int shift = static_cast<int>(first & 7);
  uint32_t word = width > 0 ? bits[first >> 3] : 0;
  if (shift + width > 8) word |= static_cast<uint32_t>(bits[(first >> 3) + 1]) << 8;
  return word >> shift & ((1u << width) - 1);
}

// Step 1, by one thread.
__device__ inline float table_entry(const CodeValues& a, uint32_t code) {
  if (a.table == CodeTable::kDynamic8) return kDynamic8OnDevice.value[code];
  return a.table == CodeTable::kValues ? a.scales[code] : uniform_value(a.scales[0], code, a.width);
}

__global__ void __launch_bounds__(kCodesThreads) code_values_kernel(CodeValues a) {
  __shared__ float table[1 << kMostTableBits];
  const bool dynamic = a.table == CodeTable::kDynamic8;
  const bool shared = dynamic || (a.bucket == 0 && a.width <= kMostTableBits);
  if (shared && threadIdx.x < 1u << a.width) table[threadIdx.x] = table_entry(a, threadIdx.x);
  __syncthreads();
  const bool aligned = is_aligned(a.value);
  for (int64_t q = grid_first(); q < ceil_div(a.n, 4); q += grid_stride()) {
    const int64_t i = 4 * q;
    int64_t j = a.bucket == 0 ? 0 : i / a.bucket;
    int64_t left = a.bucket == 0 ? 4 : (j + 1) * a.bucket - i;
    Quad quad;
    for (int c = 0; c < 4 && i + c < a.n; ++c, --left) {
      if (left == 0) ++j, left = a.bucket;
      const uint32_t code = code_at(a.bits, i + c, a.width);
      if (dynamic) {
        quad.x[c] = a.scales[j] * table[code];
      } else if (shared) {
        quad.x[c] = table[code];
      } else if (a.table == CodeTable::kValues) {
        quad.x[c] = a.scales[(j << a.width) + code];
      } else if (a.table == CodeTable::kUniform) {
        quad.x[c] = uniform_value(a.scales[j], code, a.width);
      } else {
        quad.x[c] = a.table == CodeTable::kFloat16 ? half_value(code) : bfloat_value(code);
      }
    }
    store_quad(a.value, i, a.n, aligned, quad);
  }
}

// The launches.

cudaError_t launch_code_values(const CodeValues& args, int64_t max_blocks, cudaStream_t stream) {
  if (args.n == 0) return cudaSuccess;
  GCEXT_LAUNCH(code_values_kernel, blocks_for(ceil_div(args.n, 4), kCodesThreads, max_blocks),
               kCodesThreads, stream, args);
  return cudaSuccess;
}

}  // namespace gcext
