// What threshold, adacomp, wangni and levels do with the elements that they choose. A warp has a
// contiguous range of elements: it counts, one block adds up the counts, and the warp writes its
// pairs in order, by ballots alone.
#pragma once

#include "sum.cuh"

namespace gcext {

constexpr int kChosenThreads = 256;
constexpr int kChosenWarps = kChosenThreads / kWarp;
constexpr int kSettleThreads = 1024;

// On the device, between the kernels of one call.
struct ChosenState {
  FirstNonFinite first;
  uint64_t refused;
};

template <class Value>
struct Pairs {
  void* index;  // int64 if `wide`, else int32
  bool wide;
  Value* value;

  __device__ void put(uint64_t place, int64_t i, Value sent) const {
    if (wide) {
      static_cast<int64_t*>(index)[place] = i;
    } else {
      static_cast<int32_t*>(index)[place] = static_cast<int32_t>(i);
    }
    value[place] = sent;
  }

  // Those of a row, an element a lane, from place `next` on; returns the place behind them. Every
  // lane must call it.
  __device__ uint64_t put_row(bool own, uint64_t next, int64_t i, Value sent) const {
    const unsigned all = __ballot_sync(kWholeWarp, own);
    if (own) put(next + __popc(all & lanes_below()), i, sent);
    return next + __popc(all);
  }
};

// This warp among those of the grid, and its items of `count`.
__device__ inline int64_t warp_of_grid() { return grid_first() / kWarp; }

__device__ inline Range range_of_warp(int64_t count) {
  const int64_t step = ceil_div(count, grid_stride() / kWarp), begin = step * warp_of_grid();
  return {begin < count ? begin : count, begin + step < count ? begin + step : count};
}

// Its elements, in whole rows of a warp's width.
__device__ inline Range elements_of_warp(int64_t n) {
  const Range rows = range_of_warp(ceil_div(n, kWarp));
  return {rows.begin * kWarp, rows.end * kWarp < n ? rows.end * kWarp : n};
}

__device__ inline void clear_chosen(ChosenState* state) {
  state->first = {kNowhere, kNowhere, kNowhere};
  state->refused = 0;
}

// One block: makes of the warps' counts how many were chosen before each of them; returns how many
// in all. Every thread must call it; warp_sums is shared memory, one entry a warp.
__device__ inline uint64_t settle_counts(uint64_t* counts, int64_t warps, uint64_t* warp_sums) {
  const int64_t each = ceil_div(warps, blockDim.x), from = each * threadIdx.x;
  const int64_t until = from + each < warps ? from + each : warps;
  uint64_t own = 0, total;
  for (int64_t i = from; i < until; ++i) own += counts[i];
  uint64_t next = block_exclusive_sum(own, warp_sums, &total);
  for (int64_t i = from; i < until; ++i) {
    const uint64_t count = counts[i];
    counts[i] = next;
    next += count;
  }
  return total;
}

// The pairs of this warp's elements, from its `next` on, and to out, unless that is null, what is
// left of their sums, or, where nothing is to be `subtracted`, these; kept: out has the sums. Every
// lane must call it; sum_of(i), chosen(i, sum), and sent(sum) of what is.
template <class Sum, class Chosen, class Sent>
__device__ inline void emit_chosen(float* out, bool subtracted, bool kept, Range range,
                                   uint64_t next, const Pairs<float>& pairs, const Sum& sum_of,
                                   const Chosen& chosen, const Sent& sent) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = range.begin; row < range.end; row += kWarp) {
    const int64_t i = row + lane;
    const float sum = i < range.end ? sum_of(i) : 0.0f;
    const bool own = i < range.end && chosen(i, sum);
    const float value = own ? sent(sum) : 0.0f;
    next = pairs.put_row(own, next, i, value);
    const bool changed = own && subtracted;
    if (i < range.end && out != nullptr && (changed || !kept)) out[i] = changed ? sum - value : sum;
  }
}

}  // namespace gcext
