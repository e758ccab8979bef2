// quantize on CUDA: the kernels. csrc/quantize.h has the contract, quantize.cu the sequences.
//
// The host learns later that a sum is not finite; then the last kernel makes out a copy of memory.
// Sign computes the sum twice rather than keep it, first to validate it. Levels leave it in out,
// unless that is the memory, which nothing may be written to before.
//
//   1. Sign: signs by ballots, magnitudes to one bin an exponent, in shared memory and then in the
//      device's; the first element of tensor, memory and sum that is not finite.
//   2. Report: the status; the mean of the bins.
//   3. Subtract: out; where the mean is 0 all bits are cleared.
//
//   4. Levels: eight threads a cell, one for each lane of its squares, each in order; lanes are
//      added by shuffles in the order of add_lanes. Also the largest key, and what is not finite.
//   5. A warp a bucket adds its cells in order: the norm. Then the report of step 2.
//   5a. fit: draw, and add what norms are fitted by, as in step 4; then a warp a bucket, as in
//   step 5.
//   6. Count: draw, and count the levels that are not 0, a warp a contiguous range.
//   7. Settle, one block: how many there are in all, and before each warp.
//   8. Emit, a warp the same elements: draw again; pairs in order, by ballots, and out.
//
//   9. Back: a thread a level.
//
// Traffic: sign reads tensor and memory twice and writes out and n/8 bytes, 20 bytes an element,
// and with next once, 12; levels read them once and the sum twice (fit: three times), in place and
// without out them three times (four), write out twice and 6 bytes for each level that is not 0.
// Back: 10 bytes a level, and the norms.
#pragma once

#include "cells.cuh"
#include "chosen.cuh"
#include "near_bins.cuh"
#include "planes.cuh"
#include "quantize_launch.h"

namespace gcext {

constexpr int kQuantizeThreads = kChosenThreads;
constexpr int kSignRows = 4;  // of 32 elements, that a warp has in flight

// On the device, between the kernels of one call.
struct QuantizeState {
  uint64_t bins[kBins];
  FirstNonFinite first;
  uint64_t refused;
};

struct CellSum {
  double squares;
  uint64_t top;  // the largest key
};

static_assert(sizeof(FitSums) == sizeof(CellSum), "the one takes the other's place");

// A block's elements, in whole tiles.
__device__ inline Range element_range(int64_t n) {
  const Range tiles = range_of_block(ceil_div(n, kQuantizeThreads));
  const int64_t begin = tiles.begin * kQuantizeThreads, end = tiles.end * kQuantizeThreads;
  return {begin < n ? begin : n, end < n ? end : n};
}

// One block.
__global__ void __launch_bounds__(kQuantizeThreads) quantize_clear_kernel(QuantizeState* state) {
  clear_bins<kQuantizeThreads>(state->bins);
  if (threadIdx.x != 0) return;
  state->first = {kNowhere, kNowhere, kNowhere};
  state->refused = 0;
}

// Steps 2 and 5, one thread. `mean`: of the bins, to info.
__global__ void quantize_report_kernel(bool mean, int64_t n, QuantizeState* state, int64_t* info) {
  state->refused = report(state->first, true, info) != kSelectOk;
  if (!mean || state->refused) return;
  info[kInfoCount] = n;
  info[kInfoMean] = exact_mean_bits(state->bins, static_cast<uint64_t>(n));
}

// Step 1; where the subtraction is deferred, out becomes the sum. A warp takes rows of 32 elements
// side by side, all loads in flight.
__global__ void __launch_bounds__(kQuantizeThreads)
    sign_tally_kernel(Source source, int64_t n, uint8_t* bits, bool deferred,
                      QuantizeState* state) {
  __shared__ uint64_t bins[kBins];
  const Held held = held_of(source);
  clear_bins<kQuantizeThreads>(bins);
  __syncthreads();
  const Range range = element_range(n);
  const int lane = threadIdx.x % kWarp;
  NearBins near;
  for (int64_t at = range.begin + int64_t{threadIdx.x / kWarp} * kSignRows * kWarp; at < range.end;
       at += int64_t{kSignRows} * kQuantizeThreads) {
    float acc[kSignRows];
    uint32_t key[kSignRows];
    unsigned own = 0;  // the row of signs that this lane writes a byte of
#pragma unroll
    for (int r = 0; r < kSignRows; ++r) {
      const int64_t i = at + r * kWarp + lane;
      acc[r] = i < range.end ? held_sum_at(source, held, i) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kSignRows; ++r) {
      const int64_t i = at + r * kWarp + lane;
      key[r] = key_of(acc[r]);
      if (key[r] >= kInfKey) {
        note(source, i, &state->first);
        key[r] = 0;
      }
      if (deferred && i < range.end) source.out[i] = acc[r];
      const unsigned row = __ballot_sync(kWholeWarp, acc[r] < 0);
      if (lane / 4 == r) own = row;
    }
    near.add(key, bins);
    if (lane < 4 * kSignRows && at + 8 * lane < range.end)
      bits[at / 8 + lane] = static_cast<uint8_t>(own >> (8 * (lane % 4)));
  }
  near.flush(bins);
  __syncthreads();
  add_bins(bins, state->bins);
}

// Step 3.
__global__ void __launch_bounds__(kQuantizeThreads)
    sign_subtract_kernel(Source source, int64_t n, uint8_t* bits, int64_t* next,
                         const QuantizeState* state, const int64_t* info) {
  if (grid_first() == 0) {
    begin_next(source, next, state->refused);
    if (next != nullptr && !state->refused) set_sent(next, 0, n, info[kInfoMean]);
  }
  if (state->refused) return restore(source, grid_first(), n, grid_stride());
  const float scale = float_of(static_cast<uint32_t>(info[kInfoMean]));
  if (info[kInfoMean] == 0) {
    for (int64_t i = grid_first(); i < ceil_div(n, 8); i += grid_stride()) bits[i] = 0;
  }
  if (source.out == nullptr || next != nullptr) return;
  const Held held = held_of(source);
  for (int64_t i = grid_first(); i < n; i += grid_stride()) {
    const float acc = held_sum_at(source, held, i);
    source.out[i] = acc - (acc < 0 ? -scale : scale);
  }
}

// Step 4.
__global__ void __launch_bounds__(kQuantizeThreads)
    levels_cell_kernel(Source source, Cells cells, CellSum* sums, QuantizeState* state) {
  each_cell(cells, [&](const CellLane& own) {
    double squares = 0;
    uint32_t top = 0;
    for (int64_t i = own.first; i < own.end; i += kLanes) {
      const float acc = sum_at(source, i);
      const uint32_t key = key_of(acc);
      top = key > top ? key : top;
      if (key >= kInfKey) note(source, i, &state->first);
      squares += static_cast<double>(acc) * static_cast<double>(acc);
      if (keeps_sums(source)) source.out[i] = acc;
    }
    squares = sum_of_lanes<kLanes>(squares);
    top = largest_of_lanes<kLanes>(top);
    if (own.writes) sums[own.cell] = {squares, top};
  });
}

// Step 5.
__global__ void __launch_bounds__(kQuantizeThreads)
    levels_norm_kernel(Cells cells, Norm norm, const CellSum* sums, float* norms) {
  const int lane = threadIdx.x % kWarp;
  each_bucket(cells, [&](int64_t bucket, int64_t first, int64_t last) {
    double squares = 0;
    uint64_t top = 0;
    for (int64_t cell = first; cell < last; cell += kWarp) {
      const CellSum own = cell + lane < last ? sums[cell + lane] : CellSum{0.0, 0};
      for (int l = 0; l < kWarp && cell + l < last; ++l) {
        squares += __shfl_sync(kWholeWarp, own.squares, l);
        const uint64_t other = __shfl_sync(kWholeWarp, own.top, l);
        top = other > top ? other : top;
      }
    }
    const int64_t left = cells.n - bucket * cells.bucket;
    if (lane == 0)
      norms[bucket] = norm_of(norm, left < cells.bucket ? left : cells.bucket, squares,
                              static_cast<uint32_t>(top));
  });
}

// What the elements of a bucket draw by.
struct Drawing {
  float norm;
  double per_norm;  // steps
};

__device__ inline Drawing drawing(float norm, const LevelRule& rule) {
  return {norm, norm > 0 ? static_cast<double>(rule.steps) / norm : 0.0};
}

// The level that element i draws.
__device__ inline int32_t draw(float acc, const Drawing& by, const LevelRule& rule, int64_t i) {
  if (!(by.norm > 0)) return 0;
  const float magnitude = acc < 0 ? -acc : acc;
  const int32_t level =
      level_of(magnitude < by.norm ? magnitude : by.norm, by.per_norm, draw_one(rule.key, i));
  return acc < 0 ? -level : level;
}

// Step 5a, of cells.
__global__ void __launch_bounds__(kQuantizeThreads)
    levels_fit_kernel(Source source, Cells cells, LevelRule rule, const float* norms,
                      const QuantizeState* state, FitSums* fits) {
  if (state->refused) return;
  fit_cells(source, cells, norms, fits, [&](float acc, float norm, int64_t i) {
    return draw(acc, drawing(norm, rule), rule, i);
  });
}

// Step 5a, of buckets.
__global__ void __launch_bounds__(kQuantizeThreads)
    levels_fitted_kernel(Cells cells, int32_t steps, const FitSums* fits,
                         const QuantizeState* state, float* norms) {
  if (state->refused) return;
  fit_buckets(cells, fits, [&](int64_t bucket, const FitSums& sums) {
    norms[bucket] = fitted_norm(sums, steps);
  });
}

// Draws the levels of this warp's elements: body(i, inside, sum, level, bucket), a row at a time;
// where a lane is not inside, of level 0. Every lane must call it.
template <class Body>
__device__ inline void for_levels(const Source& sums, const Cells& cells, const LevelRule& rule,
                                  const float* drawn_by, const Body& body) {
  const Range range = elements_of_warp(cells.n);
  int64_t i = range.begin + threadIdx.x % kWarp;
  int64_t bucket = i / cells.bucket, at = i % cells.bucket;
  Drawing by = {0, 0};
  for (bool entered = true; i - threadIdx.x % kWarp < range.end; i += kWarp) {
    const bool inside = i < range.end;
    if (inside && entered) by = drawing(drawn_by[bucket], rule);
    const float sum = inside ? sum_at(sums, i) : 0.0f;
    body(i, inside, sum, inside ? draw(sum, by, rule, i) : 0, bucket);
    at += kWarp;
    entered = at >= cells.bucket;
    if (entered) {
      bucket += at / cells.bucket;
      at %= cells.bucket;
    }
  }
}

// Step 6; sums: kept_sums of the source.
__global__ void __launch_bounds__(kQuantizeThreads)
    levels_count_kernel(Source sums, Cells cells, LevelRule rule, const float* drawn_by,
                        const QuantizeState* state, uint64_t* counts) {
  if (state->refused) return;
  uint64_t count = 0;
  for_levels(sums, cells, rule, drawn_by,
             [&](int64_t, bool, float, int32_t level, int64_t) { count += level != 0; });
  count = sum_of_lanes(count);
  if (threadIdx.x % kWarp == 0) counts[warp_of_grid()] = count;
}

// Step 7, one block; `warps` of the step before.
__global__ void __launch_bounds__(kSettleThreads)
    levels_settle_kernel(const QuantizeState* state, uint64_t* counts, int64_t warps,
                         int64_t* info) {
  __shared__ uint64_t warp_sums[kSettleThreads / kWarp];
  if (state->refused) return;
  const uint64_t total = settle_counts(counts, warps, warp_sums);
  if (threadIdx.x == 0) info[kInfoCount] = static_cast<int64_t>(total);
}

// Step 8.
__global__ void __launch_bounds__(kQuantizeThreads)
    levels_emit_kernel(Source source, Source sums, Cells cells, LevelRule rule,
                       const float* drawn_by, const float* norms, const QuantizeState* state,
                       const uint64_t* counts, Pairs<int16_t> pairs) {
  if (state->refused) return restore(source, grid_first(), cells.n, grid_stride());
  uint64_t next = counts[warp_of_grid()];
  const bool all = in_place(source);  // of out is written
  for_levels(sums, cells, rule, drawn_by,
             [&](int64_t i, bool inside, float sum, int32_t level, int64_t bucket) {
               next = pairs.put_row(level != 0, next, i, static_cast<int16_t>(level));
               if (inside && sums.out != nullptr && (all || level != 0))
                 sums.out[i] = sum - sent_of(norms[bucket], level, rule.steps);
             });
}

// Step 9. What lies beyond the norms, as nothing does in a sound packet, is 0.
template <class Index>
__global__ void __launch_bounds__(kQuantizeThreads) level_values_kernel(LevelValues a) {
  const Index* const at = static_cast<const Index*>(a.at);
  for (int64_t i = grid_first(); i < a.n; i += grid_stride()) {
    const int64_t norm = a.bucket == 0 ? 0 : at[i] / static_cast<Index>(a.bucket);
    const bool inside = norm >= 0 && norm < a.buckets;
    a.value[i] = inside ? sent_of(a.norms[norm], a.level[i], a.steps) : 0.0f;
  }
}

}  // namespace gcext
