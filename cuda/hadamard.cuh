// hadamard on CUDA: the kernels. csrc/hadamard.h has the contract, hadamard.cu the sequence.
//
// A round is
//
// 1. Tile: a block loads 2^kHadamardTileLevel values, times their factor and sign, does the strides
// that
//    stay within the tile (and the chunk) in shared memory, and stores them.
// 2. Far: up to three larger strides a pass, in registers.
//
// The last kernel of the inverse applies the outermost signs to what it stores. A thread does three
// strides on 8 values between barriers; every value is the same tree of additions as on the CPU.
//
// Bytes of global memory for a value: 8 a pass. At chunks of 2^16 two passes a round, 32 in all,
// where 8 is the least that any rotation needs: a chunk's 256 KiB do not fit shared memory.
#pragma once

#include "common.cuh"
#include "hadamard_launch.h"

namespace gcext {

constexpr int kHadamardThreads = 256;
constexpr int kHadamardTileLevel = 13;  // 32 KiB
constexpr int64_t kHadamardTile = int64_t{1} << kHadamardTileLevel;
constexpr int kRadix = 3;  // strides a thread does at once

__device__ inline float flipped(float x, uint64_t signs, int64_t i) {
  return signs >> (i % 64) & 1 ? -x : x;
}

// Strides half, 2*half, .. of the g-th group of 2^strides values that belong together.
__device__ inline void hadamard_group(float* x, int64_t g, int64_t half, int strides) {
  const int width = 1 << strides;
  float* at = x + g / half * (half << strides) + g % half;
  float v[1 << kRadix];
  for (int k = 0; k < 1 << kRadix; ++k) v[k] = k < width ? at[k * half] : 0.0f;
  for (int s = 0; s < kRadix; ++s) {
    for (int k = 0; k < 1 << kRadix; ++k) {
      if (s >= strides || (k >> s & 1) != 0) continue;
      const float p = v[k], q = v[k | 1 << s];
      v[k] = p + q;
      v[k | 1 << s] = p - q;
    }
  }
  for (int k = 0; k < 1 << kRadix; ++k) {
    if (k < width) at[k * half] = v[k];
  }
}

// Step 1 of a round. signs: whether values are negated by that round's; last: whether what is
// stored takes the signs of round 0.
__global__ void __launch_bounds__(kHadamardThreads)
    hadamard_tile_kernel(HadamardLaunch a, const float* from, int round, bool signs, bool last) {
  __shared__ float x[kHadamardTile];
  __shared__ uint64_t before[kHadamardTile / 64], after[kHadamardTile / 64];
  const float factor = hadamard_factor(a.level, round);
  const int level = a.level < kHadamardTileLevel ? a.level : kHadamardTileLevel;
  for (int64_t tile = blockIdx.x; tile < ceil_div(a.n, kHadamardTile); tile += gridDim.x) {
    const int64_t begin = tile * kHadamardTile,
                  size = a.n - begin < kHadamardTile ? a.n - begin : kHadamardTile;
    for (int64_t i = threadIdx.x; i < size / 64; i += kHadamardThreads) {
      before[i] = signs ? hadamard_signs(a.key, begin / 64 + i, round) : 0;
      after[i] = last ? hadamard_signs(a.key, begin / 64 + i, 0) : 0;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += kHadamardThreads) {
      x[i] = flipped(from[begin + i] * factor, before[i / 64], i);
    }
    __syncthreads();
    for (int done = 0; done < level; done += kRadix) {
      const int strides = level - done < kRadix ? level - done : kRadix;
      for (int64_t g = threadIdx.x; g < size >> strides; g += kHadamardThreads) {
        hadamard_group(x, g, int64_t{1} << done, strides);
      }
      __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < size; i += kHadamardThreads) {
      a.to[begin + i] = flipped(x[i], after[i / 64], i);
    }
    __syncthreads();
  }
}

// Step 2.
__global__ void __launch_bounds__(kHadamardThreads)
    hadamard_far_kernel(HadamardLaunch a, int64_t half, int strides, bool last) {
  for (int64_t g = grid_first(); g < a.n >> strides; g += grid_stride()) {
    hadamard_group(a.to, g, half, strides);
    if (!last) continue;
    const int64_t first = g / half * (half << strides) + g % half;
    for (int64_t k = 0; k < 1 << strides; ++k) {
      const int64_t i = first + k * half;
      a.to[i] = flipped(a.to[i], hadamard_signs(a.key, i / 64, 0), i);
    }
  }
}

}  // namespace gcext
