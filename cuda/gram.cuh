// gram on CUDA: the kernels. csrc/gram.h has the contract, gram.cu the sequence.
//
//   1. and 2. Counts of ternary pairs: gram_meet.cuh.
//
// Sums of other pairs, tile by tile as csrc/gram.h orders them:
//
//   3. Eight threads a pair and tile, one for each lane of the sum, each in order of its elements:
//      two dense packets side by side, otherwise the entries of the shorter one, looked up in the
//      other. Lanes are added by shuffles, in the order of csrc/gram.h.
//   4. A thread a pair adds tiles to their chunk and chunks to the dot, in order.
//
//   5. Finish: scales times counts; the mirrored half.
#pragma once

#include "gram_meet.cuh"
#include "planes.cuh"

namespace gcext {

constexpr int kLanes = 8;

// Running sums of a pair, between the launches.
struct PairSum {
  double dot, chunk;
};

__global__ void __launch_bounds__(kGramThreads)
    gram_clear_kernel(int64_t m, uint64_t* count, PairSum* sums) {
  for (int64_t i = grid_first(); i < m * m; i += grid_stride()) {
    count[i] = 0;
    sums[i] = {0.0, 0.0};
  }
}

// Step 3: the products of elements begin + lane, begin + lane + 8, ..
__device__ inline double lane_sum(const PacketView& x, const PacketView& y, int64_t begin,
                                  int64_t size, int lane) {
  double sum = 0;
  if (x.dense && y.dense) {
    for (int64_t e = begin + lane; e < begin + size; e += kLanes)
      sum += static_cast<double>(x.value[e]) * static_cast<double>(y.value[e]);
    return sum;
  }
  const bool swap = x.dense || (!y.dense && y.k < x.k);
  const PacketView& few = swap ? y : x;
  const PacketView& more = swap ? x : y;
  int64_t at = more.dense ? 0 : first_entry_from(more, begin);
  for (int64_t i = first_entry_from(few, begin); i < few.k; ++i) {
    const int64_t element = index_at(few, i), place = element - begin;
    if (place >= size) break;
    if (place < 0 || place % kLanes != lane) continue;
    float other = 0;
    if (more.dense) {
      other = more.value[element];
    } else {
      while (at < more.k && index_at(more, at) < element) ++at;
      if (at < more.k && index_at(more, at) == element) other = more.value[at];
    }
    sum += static_cast<double>(few.value[i]) * static_cast<double>(other);
  }
  return sum;
}

// Step 3, tiles [first, first + tiles).
__global__ void __launch_bounds__(kGramThreads)
    gram_sum_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, int64_t first,
                    int64_t tiles, double* tile_sum) {
  const int lane = threadIdx.x % kLanes;
  // Whole warps go round together: every lane must come to the shuffles.
  for (int64_t warp = grid_first() - threadIdx.x % kWarp; warp < tiles * m * m * kLanes;
       warp += grid_stride()) {
    const int64_t task = (warp + threadIdx.x % kWarp) / kLanes;
    const int64_t tile = first + task / (m * m), i = task / m % m, j = task % m;
    const bool mine =
        task < tiles * m * m && i <= j && !(is_ternary(packets[i]) && is_ternary(packets[j]));
    double sum = 0;
    if (mine) {
      const int64_t begin = tile * kGramTile, left = numel - begin;
      sum = lane_sum(packets[i].packet, packets[j].packet, begin,
                     left < kGramTile ? left : kGramTile, lane);
    }
    sum += __shfl_xor_sync(kWholeWarp, sum, 4);
    sum += __shfl_xor_sync(kWholeWarp, sum, 2);
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    if (mine && lane == 0) tile_sum[task] = sum;
  }
}

// Step 4, the same tiles, `step` of them in a chunk. Pairs that are not summed are left alone.
__global__ void __launch_bounds__(kGramThreads)
    gram_add_kernel(const WeightedPacket* packets, int64_t m, int64_t first, int64_t tiles,
                    int64_t step, const double* tile_sum, PairSum* sums) {
  for (int64_t pair = grid_first(); pair < m * m; pair += grid_stride()) {
    const int64_t i = pair / m, j = pair % m;
    if (i > j || (is_ternary(packets[i]) && is_ternary(packets[j]))) continue;
    PairSum sum = sums[pair];
    for (int64_t t = 0; t < tiles; ++t) {
      if ((first + t) % step == 0) sum = {sum.dot + sum.chunk, 0.0};
      sum.chunk += tile_sum[t * m * m + pair];
    }
    sums[pair] = sum;
  }
}

// Step 5.
__global__ void __launch_bounds__(kGramThreads)
    gram_finish_kernel(const WeightedPacket* packets, int64_t m, const uint64_t* count,
                       const PairSum* sums, double* out) {
  for (int64_t pair = grid_first(); pair < m * m; pair += grid_stride()) {
    const int64_t i = pair / m, j = pair % m, low = i < j ? i : j, high = i < j ? j : i;
    if (is_ternary(packets[i]) && is_ternary(packets[j])) {
      const int64_t c =
          i == j ? packets[i].packet.k : static_cast<int64_t>(count[pair_at(high, low)]);
      out[pair] = (packets[i].weight * packets[j].weight) * static_cast<double>(c);
    } else {
      const PairSum sum = sums[low * m + high];
      out[pair] = sum.dot + sum.chunk;
    }
  }
}

}  // namespace gcext
