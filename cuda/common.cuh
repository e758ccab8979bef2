// What every kernel file needs. Kernels keep to what tests/emu/cuemu.h emulates: static shared
// memory, barriers, ballots, shuffles, integer atomics; no cub, cooperative groups or PTX.
// Floating-point atomics would make results depend on the schedule and are banned.
#pragma once

#include <cstdint>

#include "../csrc/common/exact_mean.h"
#include "kernels.h"
#include "launch.h"

#ifdef GCEXT_CUEMU
#define GCEXT_LAUNCH(kernel, blocks, threads, stream, ...) \
  (GCEXT_REGISTER(kernel),                                 \
   ::cuemu::launch(#kernel, blocks, threads, stream, [=]() mutable { kernel(__VA_ARGS__); }))
#else
// Enqueues a kernel; leaves the calling launcher with the error of a launch that failed.
#define GCEXT_LAUNCH(kernel, blocks, threads, stream, ...)                                \
  do {                                                                                    \
    GCEXT_REGISTER(kernel);                                                               \
    kernel<<<static_cast<unsigned>(blocks), threads, 0, stream>>>(__VA_ARGS__);           \
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error; \
  } while (0)
#endif

namespace gcext {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

GCEXT_HD inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Blocks for `work`, `each` of it a block, but no more than `most`.
inline int64_t blocks_for(int64_t work, int64_t each, int64_t most) {
  const int64_t blocks = ceil_div(work, each);
  return blocks < most ? blocks : most;
}

// The first element of this thread in a pass of the whole grid, and the step to its next one.
__device__ inline int64_t grid_first() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t grid_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// This block's items of `count`: consecutive ones, so that what was found of the first of them is
// carried on to the next.
struct Range {
  int64_t begin, end;
};

__device__ inline Range range_of_block(int64_t count) {
  const int64_t step = ceil_div(count, gridDim.x), begin = step * blockIdx.x, end = begin + step;
  return {begin < count ? begin : count, end < count ? end : count};
}

// CUDA's 64-bit atomics are declared for unsigned long long only, which is not uint64_t.
__device__ inline void atomic_add(uint64_t* to, uint64_t x) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(x));
}

__device__ inline void atomic_min(uint64_t* to, uint64_t x) {
  atomicMin(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(x));
}

// What other blocks write meanwhile, read in a loop until it is what is waited for.
__device__ inline uint32_t polled(uint32_t* from) {
#ifdef GCEXT_CUEMU
  return atomicAdd(from, 0u);  // where the emulator may run another block
#else
  __nanosleep(64);  // leaves the memory to those who are waited for
  return *const_cast<volatile uint32_t*>(from);
#endif
}

// A copy in shared memory of what every thread reads. Every thread must call `take`.
template <class T>
struct SharedCopy {
  static_assert(sizeof(T) % sizeof(uint64_t) == 0, "copied in words of 8 bytes");
  uint64_t words[sizeof(T) / sizeof(uint64_t)];

  __device__ void take(const T& from) {
    for (unsigned i = threadIdx.x; i < sizeof(T) / sizeof(uint64_t); i += blockDim.x)
      words[i] = reinterpret_cast<const uint64_t*>(&from)[i];
    __syncthreads();
  }
  __device__ const T& operator*() const { return *reinterpret_cast<const T*>(words); }
  __device__ T& operator*() { return *reinterpret_cast<T*>(words); }
};

// Of rising numbers, the place of the last one not above x: the item whose blocks, numbered through
// all items, hold block x. first[0] <= x.
template <class T>
__device__ inline int64_t last_not_above(const T* first, int64_t count, T x) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (first[middle] <= x ? low : high) = middle;
  }
  return low;
}

// The lanes of a warp below this one.
__device__ inline unsigned lanes_below() { return (1u << (threadIdx.x % kWarp)) - 1; }

// Counts a digit in each lane's bin, -1 for none: the lanes of a warp that share one add it
// together, as magnitudes crowd into few. Every lane must call it; counts is shared memory.
__device__ inline void add_to_bin(uint32_t* counts, int digit) {
  const unsigned same = __match_any_sync(kWholeWarp, digit);
  if (digit >= 0 && (same & lanes_below()) == 0)
    atomicAdd(&counts[digit], static_cast<uint32_t>(__popc(same)));
}

// Four consecutive elements, in one access where all that is asked for is there and on a multiple
// of 16 bytes (`aligned`); else those before `end`, and zeros. i is a multiple of four from an
// aligned pointer on.
struct Quad {
  float x[4];
};

__device__ inline bool is_aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(float4) == 0;
}

__device__ inline Quad load_whole_quad(const float* p, int64_t i) {
  const float4 v = __ldcs(reinterpret_cast<const float4*>(p + i));  // read once
  return {{v.x, v.y, v.z, v.w}};
}

__device__ inline void store_whole_quad(float* p, int64_t i, const Quad& q) {
  *reinterpret_cast<float4*>(p + i) = float4{q.x[0], q.x[1], q.x[2], q.x[3]};
}

__device__ inline Quad load_quad(const float* p, int64_t i, int64_t end, bool aligned) {
  if (aligned && i + 4 <= end) return load_whole_quad(p, i);
  Quad quad;
  for (int c = 0; c < 4; ++c) quad.x[c] = i + c < end ? p[i + c] : 0.0f;
  return quad;
}

__device__ inline void store_quad(float* p, int64_t i, int64_t end, bool aligned, const Quad& q) {
  if (aligned && i + 4 <= end) return store_whole_quad(p, i, q);
  for (int c = 0; c < 4; ++c) {
    if (i + c < end) p[i + c] = q.x[c];
  }
}

// The first elements of tensor, memory and their sum that are not finite, or kNowhere.
constexpr uint64_t kNowhere = UINT64_MAX;

struct FirstNonFinite {
  uint64_t tensor, memory, sum;
};

// Writes status and where to info. An error in tensor comes before one in memory, and that before
// one of the sum; where the sum is not `stored`, its place is -1, as on the CPU.
__device__ inline SelectStatus report(const FirstNonFinite& first, bool stored, int64_t* info) {
  SelectStatus status = kSelectOk;
  uint64_t where = 0;
  if (first.tensor != kNowhere) {
    status = kSelectTensor, where = first.tensor;
  } else if (first.memory != kNowhere) {
    status = kSelectMemory, where = first.memory;
  } else if (first.sum != kNowhere) {
    status = kSelectOverflow, where = stored ? first.sum : kNowhere;
  }
  info[kInfoCount] = info[kInfoMean] = 0;
  info[kInfoStatus] = status;
  info[kInfoWhere] = static_cast<int64_t>(where);
  return status;
}

// Makes out a copy of memory where the sum was not finite; in place nothing was written.
__device__ inline void restore(const Source& source, int64_t first, int64_t end, int64_t stride) {
  if (source.out == source.memory) return;
  for (int64_t i = first; i < end; i += stride) source.out[i] = source.memory[i];
}

// x of kCount neighbouring lanes of a warp, added in the order of scalar.h's add_lanes; and the
// largest of them. Every lane of the warp must call it.
template <int kCount = kWarp, class T>
__device__ inline T sum_of_lanes(T x) {
  for (int step = kCount / 2; step > 0; step /= 2) x += __shfl_xor_sync(kWholeWarp, x, step);
  return x;
}

template <int kCount = kWarp, class T>
__device__ inline T largest_of_lanes(T x) {
  for (int step = kCount / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kWholeWarp, x, step);
    x = other > x ? other : x;
  }
  return x;
}

// The sum of x over the lanes up to this one. Every lane of the warp must call it.
template <class T>
__device__ inline T warp_inclusive_sum(T x) {
  for (unsigned step = 1; step < kWarp; step *= 2) {
    const T below = __shfl_up_sync(kWholeWarp, x, step);
    if (threadIdx.x % kWarp >= step) x += below;
  }
  return x;
}

// The sum of x, one a warp, over the warps below this one, and over all of them in *total. Every
// thread must call it; warp_sums is shared memory, one entry a warp, free again on return. Each
// lane reads one warp's: 32 reads by every thread of a block of 32 warps would take a thousand
// cycles.
template <class T>
__device__ inline T sum_of_warps_below(T x, T* warp_sums, T* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (lane == 0) warp_sums[warp] = x;
  __syncthreads();
  const T sum = warp_inclusive_sum(lane < warps ? warp_sums[lane] : T{0});
  __syncthreads();
  *total = __shfl_sync(kWholeWarp, sum, kWarp - 1);
  return __shfl_sync(kWholeWarp, sum, warp) - x;
}

// The sum of x over the block's threads below this one, and over all of them in *total, likewise.
__device__ inline uint64_t block_exclusive_sum(uint64_t x, uint64_t* warp_sums, uint64_t* total) {
  const uint64_t sum = warp_inclusive_sum(x);
  const uint64_t own = __shfl_sync(kWholeWarp, sum, kWarp - 1);
  return sum_of_warps_below(own, warp_sums, total) + sum - x;
}

}  // namespace gcext
