// Exact sums of magnitudes on the device, an integer an exponent (csrc/common/exact_mean.h).
#pragma once

#include "common.cuh"

namespace gcext {

// The sums of one thread's magnitudes by exponent: those near the largest of the warp's first ones
// in registers, as a shared counter on which the lanes of a warp meet costs them a turn each.
struct NearBins {
  static constexpr int kNear = 6;
  int first = -1;  // bin; -1: not known yet
  uint64_t sum[kNear] = {};

  // Every lane must call it, with keys of finite values.
  template <int kCount>
  __device__ void add(const uint32_t (&key)[kCount], uint64_t* bins) {
    if (first < 0) {
      uint32_t top = 0;
      for (int r = 0; r < kCount; ++r) top = key[r] > top ? key[r] : top;
      top = largest_of_lanes(top);
      first = bin_of(top) < kNear ? 0 : bin_of(top) - kNear + 1;
    }
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      const int at = bin_of(key[r]) - first;
      const uint64_t mantissa = mantissa_of(key[r]);
#pragma unroll
      for (int j = 0; j < kNear; ++j) sum[j] += at == j ? mantissa : 0;
      if ((at < 0 || at >= kNear) && key[r] != 0) atomic_add(&bins[at + first], mantissa);
    }
  }
  // Every lane must call it.
  __device__ void flush(uint64_t* bins) {
    for (int j = 0; j < kNear; ++j) {
      sum[j] = sum_of_lanes(sum[j]);
      if (threadIdx.x % kWarp == 0 && sum[j] != 0) atomic_add(&bins[first + j], sum[j]);
    }
  }
};

// Every one of the block's kThreads must call it, and a barrier must follow.
template <int kThreads>
__device__ inline void clear_bins(uint64_t* bins, int count = kBins) {
  for (int i = threadIdx.x; i < count; i += kThreads) bins[i] = 0;
}

// The block's bins, in shared memory, are added to those of all blocks. Every thread must call it,
// after a barrier.
__device__ inline void add_bins(const uint64_t* bins, uint64_t* to, unsigned count = kBins) {
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
    if (bins[i] != 0) atomic_add(&to[i], bins[i]);
  }
}

}  // namespace gcext
