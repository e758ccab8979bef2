// rotate on CUDA: the kernels and their launches. csrc/rotate.h has the contract.
//
// A block rotates a chunk at a time, in as many launches whatever the size of the vector. A round
// is
//
// 1. Tile: 2^kRotateTileLevel values are loaded, times their factor and sign, go through the
// strides
//    that stay within the tile (and the chunk) in shared memory, and are stored.
// 2. Far: up to three larger strides a pass, in registers.
//
// A thread does three strides on 8 values between barriers; every value is the same tree of
// additions as on the CPU, and so is every sum (chunk_sum).
//
// Bytes of global memory for a value: 8 a pass. At chunks of 2^16 two passes a round, 32 in all,
// where 8 is the least that any rotation needs: a chunk's 256 KiB do not fit shared memory. What is
// between is written and read by one block, mostly in the cache of the device.
#include "common.cuh"
#include "rotate_launch.h"

namespace gcext {

constexpr int kRotateThreads = 512;
constexpr int kRotateTileLevel = 13;  // 32 KiB
constexpr int kRotateTile = 1 << kRotateTileLevel;
constexpr int kRadix = 3;          // strides a thread does at once
constexpr int kRun = 1 << kRadix;  // values of a thread between two barriers
constexpr int kMaxPartial =
    kMaxRotateLevel - 9 - kRadix;  // of chunk_sum: rows a thread, eight at a time

// Where value i of a tile stands in shared memory, so that a warp whose lanes take values 8 or 64
// apart meets no bank twice.
__device__ inline int tile_place(int i) { return i ^ (i >> 5 & 7) ^ (i >> 3 & 24); }

// The strides 2^done .. 2^(done + strides - 1) of the g-th group of 2^strides values that belong
// together: load(i) and store(k, i, x) for each of them.
template <class Load, class Store>
__device__ inline void rotate_group(int g, int done, int strides, const Load& load,
                                    const Store& store) {
  const int width = 1 << strides;
  const int first = (g >> done << (done + strides)) | (g & ((1 << done) - 1));
  float v[kRun];
  for (int k = 0; k < kRun; ++k) v[k] = k < width ? load(first + (k << done)) : 0.0f;
  for (int s = 0; s < kRadix; ++s) {
    for (int k = 0; k < kRun; ++k) {
      if (s >= strides || (k >> s & 1) != 0) continue;
      const float p = v[k], q = v[k | 1 << s];
      v[k] = p + q;
      v[k | 1 << s] = p - q;
    }
  }
  for (int k = 0; k < kRun; ++k) {
    if (k < width) store(k, first + (k << done), v[k]);
  }
}

// The signs of the warp's values first + k*step + lane, k < kRun, each k's 32 in lane k. first and
// step are multiples of 32. Every lane must call it.
__device__ inline uint32_t run_signs(uint64_t key, int first, int step, int round) {
  const int k = threadIdx.x % kWarp;
  if (k >= kRun) return 0;
  const int i = first + k * step;
  return static_cast<uint32_t>(rotate_signs(key, i / 64, round) >> (i % 64));
}

__device__ inline float flipped(float x, uint32_t signs, int k) {
  const uint32_t run = __shfl_sync(kWholeWarp, signs, k);
  return run >> (threadIdx.x % kWarp) & 1 ? -x : x;
}

// What a round does to the signs.
enum class Flip { before, after, both, none };

// A round of a chunk of 2^level values: load(i) gives what goes in, store(i, x) takes what comes
// out; `work` holds the chunk in between, and may be what is loaded. Flip::before and ::after: the
// values loaded, or stored, take the signs of round `round`, or of round 0. Every thread must call
// it; x is shared memory.
template <class Load, class Store>
__device__ inline void rotate_round(float* x, int level, uint64_t key, int round, Flip flip,
                                    const Load& load, float* work, const Store& store) {
  const bool before = flip == Flip::before || flip == Flip::both;
  const bool after = flip == Flip::after || flip == Flip::both;
  const float factor = rotate_factor(level, round);
  const int size = 1 << level;
  const int tile_level = level < kRotateTileLevel ? level : kRotateTileLevel,
            tile = 1 << tile_level;
  const int warp_first = threadIdx.x / kWarp * kWarp;
  for (int begin = 0; begin < size; begin += tile) {
    for (int at = 0; at < tile; at += kRun * kRotateThreads) {
      const uint32_t signs =
          before ? run_signs(key, begin + at + warp_first, kRotateThreads, round) : 0;
      for (int k = 0; k < kRun; ++k) {
        const int i = at + k * kRotateThreads + static_cast<int>(threadIdx.x);
        const float y = flipped(i < tile ? load(begin + i) * factor : 0.0f, signs, k);
        if (i < tile) x[tile_place(i)] = y;
      }
    }
    __syncthreads();
    for (int done = 0; done < tile_level; done += kRadix) {
      const int strides = tile_level - done < kRadix ? tile_level - done : kRadix;
      for (int g = static_cast<int>(threadIdx.x); g < tile >> strides; g += kRotateThreads) {
        rotate_group(
            g, done, strides, [&](int i) { return x[tile_place(i)]; },
            [&](int, int i, float y) { x[tile_place(i)] = y; });
      }
      __syncthreads();
    }
    const bool whole = tile == size, flips = whole && after;
    for (int at = 0; at < tile; at += kRun * kRotateThreads) {
      const uint32_t signs = flips ? run_signs(key, begin + at + warp_first, kRotateThreads, 0) : 0;
      for (int k = 0; k < kRun; ++k) {
        const int i = at + k * kRotateThreads + static_cast<int>(threadIdx.x);
        const float y = flipped(i < tile ? x[tile_place(i)] : 0.0f, signs, k);
        if (i >= tile) continue;
        if (whole) {
          store(begin + i, y);
        } else {
          work[begin + i] = y;
        }
      }
    }
    __syncthreads();
  }
  for (int done = kRotateTileLevel; done < level; done += kRadix) {
    const int strides = level - done < kRadix ? level - done : kRadix;
    const bool last = done + strides == level, flips = last && after;
    // At least 2^(kRotateTileLevel + 1 - kRadix) groups, so all threads take as many.
    for (int g = static_cast<int>(threadIdx.x); g < size >> strides; g += kRotateThreads) {
      const int g0 = g / kWarp * kWarp;
      const int first = (g0 >> done << (done + strides)) | (g0 & ((1 << done) - 1));
      const uint32_t signs = flips ? run_signs(key, first, 1 << done, 0) : 0;
      rotate_group(
          g, done, strides, [&](int i) { return work[i]; },
          [&](int k, int i, float y) {
            y = flipped(y, signs, k);
            if (last) {
              store(i, y);
            } else {
              work[i] = y;
            }
          });
    }
    __syncthreads();
  }
}

// The sum of term(i), i < size = 2^level >= 64, in float64: the first half plus the second half,
// and so on. A thread adds the rows of its column, eight loads at a time, in such an order (their
// numbers' bits reversed) that one partial sum of each number of rows waits for another; then the
// columns are added. Every thread must call it and gets the sum; sums is shared memory for
// kRotateThreads.
template <class Term>
__device__ inline double chunk_sum(double* sums, int level, const Term& term) {
  const int size = 1 << level;
  const int columns = size / kRun < kRotateThreads ? size / kRun : kRotateThreads;
  const int t = static_cast<int>(threadIdx.x);
  if (t < columns) {
    int levels = 0;  // of runs of eight rows
    while (columns * kRun << levels < size) ++levels;
    double waiting[kMaxPartial], sum = 0;
    for (int run = 0; run < 1 << levels; ++run) {
      int row = 0;
      for (int bit = 0; bit < levels; ++bit) row |= (run >> bit & 1) << (levels - 1 - bit);
      double v[kRun];
      for (int k = 0; k < kRun; ++k) {
        const int high = (k & 1) << 2 | (k & 2) | k >> 2;
        v[k] = term((high << levels | row) * columns + t);
      }
      sum = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
      bool carries = true;
      for (int l = 0; l < kMaxPartial; ++l) {  // unrolled, so that the sums stay in registers
        if (!carries) continue;
        carries = (run >> l & 1) != 0;
        if (carries) {
          sum += waiting[l];
        } else {
          waiting[l] = sum;
        }
      }
    }
    sums[t] = sum;
  }
  __syncthreads();
  for (int half = columns / 2; half > 0; half /= 2) {
    if (t < half) sums[t] += sums[t + half];
    __syncthreads();
  }
  const double sum = sums[0];
  __syncthreads();  // sums is free again
  return sum;
}

__global__ void __launch_bounds__(kRotateThreads, 2) rotate_kernel(RotateLaunch a) {
  __shared__ float x[kRotateTile];
  __shared__ double sums[kRotateThreads];
  for (int64_t chunk = blockIdx.x; chunk < a.chunks.count; chunk += gridDim.x) {
    const int level = rotate_level(a.chunks.size_of(chunk));
    const int count = static_cast<int>(a.chunks.values_of(chunk));
    const float* from = a.values + a.chunks.start(chunk);
    float* to = a.rotated + a.chunks.start(chunk);
    const uint64_t key = rotate_key(a.seed, chunk);
    const auto padded = [&](int i) { return i < count ? from[i] : 0.0f; };
    const double norm = chunk_sum(sums, level, [&](int i) {
      const double y = static_cast<double>(padded(i));
      return y * y;
    });
    if (threadIdx.x == 0) a.norm[chunk] = norm;
    const auto store = [&](int i, float y) { to[i] = y; };
    rotate_round(x, level, key, 0, Flip::before, padded, to, store);
    rotate_round(x, level, key, 1, Flip::before, [&](int i) { return to[i]; }, to, store);
  }
}

__device__ inline bool symbol_at(const uint8_t* symbols, int i) {
  return (symbols[i / 8] >> (i % 8) & 1) != 0;
}

__global__ void __launch_bounds__(kRotateThreads, 2) rotate_scale_kernel(RotateScaleLaunch a) {
  __shared__ double sums[kRotateThreads];
  for (int64_t chunk = blockIdx.x; chunk < a.chunks.count; chunk += gridDim.x) {
    const float* y = a.rotated + a.chunks.start(chunk);
    const uint8_t* symbols = a.symbols + a.chunks.start(chunk) / 8;
    const double agreement = chunk_sum(sums, rotate_level(a.chunks.size_of(chunk)), [&](int i) {
      return static_cast<double>(symbol_at(symbols, i) ? -y[i] : y[i]);
    });
    if (threadIdx.x != 0) continue;
    const float scale = rotate_unbiased(a.norm[chunk], agreement);
    a.scale[chunk] = scale;
    if (key_of(scale) >= kInfKey || (chunk == 0 && *a.bad >= 0)) {
      atomicCAS(reinterpret_cast<unsigned long long*>(a.info + kInfoStatus),
                static_cast<unsigned long long>(kSelectOk),
                static_cast<unsigned long long>(kSelectRotated));
    }
  }
}

__global__ void __launch_bounds__(kRotateThreads) rotate_back_kernel(RotateBackLaunch a) {
  __shared__ float x[kRotateTile];
  __shared__ double sums[kRotateThreads];
  for (int64_t chunk = blockIdx.x; chunk < a.chunks.count; chunk += gridDim.x) {
    const int64_t start = a.chunks.start(chunk);
    const int size = static_cast<int>(a.chunks.size_of(chunk)), level = rotate_level(size);
    const int count = static_cast<int>(a.chunks.values_of(chunk));
    const uint8_t* symbols = a.symbols + start / 8;
    float* work = count < size ? a.tail : a.out + start;
    const uint64_t key = rotate_key(a.seed, chunk);
    const auto stored = [&](int i) { return work[i]; };
    const auto store = [&](int i, float y) { work[i] = y; };
    float scale = a.scale[chunk];
    for (bool fits = a.values != nullptr;; fits = false) {
      rotate_round(
          x, level, key, 0, Flip::none,
          [&](int i) { return symbol_at(symbols, i) ? -scale : scale; }, work, store);
      rotate_round(x, level, key, 1, Flip::both, stored, work, store);
      if (!fits) break;
      const float* values = a.values + start;
      const double dot = chunk_sum(sums, level, [&](int i) {
        return i < count ? static_cast<double>(values[i]) * static_cast<double>(work[i]) : 0.0;
      });
      scale = rotate_fitted(scale, dot, size);
      if (threadIdx.x == 0) a.fitted[chunk] = scale;
    }
    if (count < size) {
      for (int i = threadIdx.x; i < count; i += kRotateThreads) a.out[start + i] = work[i];
    }
  }
}

// The launches.

namespace {

int64_t blocks_of(const RotateChunks& chunks, int64_t most) {
  return chunks.count < most ? chunks.count : most;
}

}  // namespace

cudaError_t launch_rotate(const RotateLaunch& args, cudaStream_t stream) {
  if (args.chunks.count == 0) return cudaSuccess;
  GCEXT_LAUNCH(rotate_kernel, blocks_of(args.chunks, args.max_blocks), kRotateThreads, stream,
               args);
  return cudaSuccess;
}

cudaError_t launch_rotate_scale(const RotateScaleLaunch& args, cudaStream_t stream) {
  if (args.chunks.count == 0) return cudaSuccess;
  GCEXT_LAUNCH(rotate_scale_kernel, blocks_of(args.chunks, args.max_blocks), kRotateThreads, stream,
               args);
  return cudaSuccess;
}

cudaError_t launch_rotate_back(const RotateBackLaunch& args, cudaStream_t stream) {
  if (args.chunks.count == 0) return cudaSuccess;
  GCEXT_LAUNCH(rotate_back_kernel, blocks_of(args.chunks, args.max_blocks), kRotateThreads, stream,
               args);
  return cudaSuccess;
}

}  // namespace gcext
