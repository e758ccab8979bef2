// What every kernel file needs. Kernels keep to what tests/emu/cuemu.h emulates: static shared
// memory, barriers, ballots, shuffles, integer atomics; no cub, cooperative groups or PTX.
// Floating-point atomics would make results depend on the schedule and are banned.
#pragma once

#include <cstdint>

#include "launch.h"

#ifdef GCEXT_CUEMU
#define GCEXT_LAUNCH(kernel, blocks, threads, stream, ...) \
  ::cuemu::launch(blocks, threads, stream, [&] { kernel(__VA_ARGS__); })
#else
// Enqueues a kernel; leaves the calling launcher with the error of a launch that failed.
#define GCEXT_LAUNCH(kernel, blocks, threads, stream, ...)                                \
  do {                                                                                    \
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(__VA_ARGS__);           \
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error; \
  } while (0)
#endif

namespace gcext {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

GCEXT_HD inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// CUDA's 64-bit atomics are declared for unsigned long long only, which is not uint64_t.
__device__ inline void atomic_add(uint64_t* to, uint64_t x) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(x));
}

__device__ inline void atomic_min(uint64_t* to, uint64_t x) {
  atomicMin(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(x));
}

// The lanes of a warp below this one.
__device__ inline unsigned lanes_below() { return (1u << (threadIdx.x % kWarp)) - 1; }

// The sum of x over the block's threads below this one, and over all of them in *total. Every
// thread must call it; warp_sums is shared memory, one entry a warp, free again on return.
__device__ inline uint64_t block_exclusive_sum(uint64_t x, uint64_t* warp_sums, uint64_t* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint64_t sum = x;
  for (int step = 1; step < kWarp; step *= 2) {
    const uint64_t below = __shfl_up_sync(kWholeWarp, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  uint64_t before = sum - x, all = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) {
    if (i < warp) before += warp_sums[i];
    all += warp_sums[i];
  }
  __syncthreads();
  *total = all;
  return before;
}

}  // namespace gcext
