// wangni on CUDA: the kernels and their launches. csrc/wangni.h has the contract.
//
//   1. Sum: the sums, which go to out where that is not the memory; their magnitudes, one bin an
//      exponent; the largest; the first element of tensor, memory and sum that is not finite.
//   2. Above: those from the limit on, likewise. After step 1 and after each of these one block
//      finds the next limit.
//   3. Draw: how many elements each warp has that are sure, and that are drawn; the magnitudes of
//      the latter.
//   4. Settle, one block: the status; the magnitude; how many there are in all, and before each
//      warp.
//   5. Emit, a warp the same elements: pairs in order, by ballots, and out.
//
// In place, where nothing may be written before all sums are known to be finite, every pass
// computes them anew. Everything that blocks add up is an integer. Traffic, in words an element: 3,
// and 1 in each of 4 more passes; in place 2 a pass and 1 for out; and what is sent.
#include "chosen.cuh"
#include "near_bins.cuh"
#include "wangni_launch.h"

namespace gcext {

constexpr int kWangniRows = 4;  // of 32 elements, that a warp has in flight

// On the device, between the kernels of one call.
struct WangniState : ChosenState {
  uint64_t bins[kBins];   // all magnitudes; then those that are drawn
  uint64_t above[kBins];  // those from the limit on
  uint64_t count;         // of these
  uint32_t top, limit;
};

struct WangniScratch {
  WangniState* state;
  uint64_t *sure, *drawn;  // counts, an entry a warp
};

__global__ void __launch_bounds__(kChosenThreads) wangni_clear_kernel(WangniState* state) {
  clear_bins<kChosenThreads>(state->bins);
  clear_bins<kChosenThreads>(state->above);
  if (threadIdx.x != 0) return;
  clear_chosen(state);
  state->count = 0;
  state->top = state->limit = 0;
}

// Step 1.
__global__ void __launch_bounds__(kChosenThreads)
    wangni_sum_kernel(WangniLaunch a, WangniState* state) {
  __shared__ uint64_t bins[kBins];
  clear_bins<kChosenThreads>(bins);
  __syncthreads();
  const Range range = elements_of_warp(a.n);
  const int lane = threadIdx.x % kWarp;
  NearBins near;
  uint32_t top = 0;
  for (int64_t at = range.begin; at < range.end; at += kWangniRows * kWarp) {
    uint32_t key[kWangniRows];
#pragma unroll
    for (int r = 0; r < kWangniRows; ++r) {
      const int64_t i = at + r * kWarp + lane;
      const float sum = i < range.end ? sum_at(a.source, i) : 0.0f;
      key[r] = key_of(sum);
      if (i < range.end && keeps_sums(a.source)) a.source.out[i] = sum;
    }
#pragma unroll
    for (int r = 0; r < kWangniRows; ++r) {
      if (key[r] >= kInfKey) {
        note(a.source, at + r * kWarp + lane, &state->first);
        key[r] = 0;
      }
      top = key[r] > top ? key[r] : top;
    }
    near.add(key, bins);
  }
  near.flush(bins);
  top = largest_of_lanes(top);
  if (lane == 0) atomicMax(&state->top, top);
  __syncthreads();
  add_bins(bins, state->bins);
}

// Step 2.
__global__ void __launch_bounds__(kChosenThreads)
    wangni_above_kernel(WangniLaunch a, WangniState* state) {
  __shared__ uint64_t bins[kBins];
  clear_bins<kChosenThreads>(bins);
  __syncthreads();
  const uint32_t least = wangni_sure(state->limit);
  const Range range = elements_of_warp(a.n);
  const int lane = threadIdx.x % kWarp;
  uint64_t count = 0;
  for (int64_t i = range.begin + lane; i < range.end; i += kWarp) {
    const uint32_t key = key_of(sum_at(a.source, i));
    if (key < least || key >= kInfKey) continue;
    atomic_add(&bins[bin_of(key)], mantissa_of(key));
    ++count;
  }
  count = sum_of_lanes(count);
  if (lane == 0 && count != 0) atomic_add(&state->count, count);
  __syncthreads();
  add_bins(bins, state->above);
}

// After steps 1 (`step` is 0) and 2, one block.
__global__ void __launch_bounds__(kChosenThreads)
    wangni_limit_kernel(WangniRule rule, int64_t n, int step, WangniState* state) {
  __shared__ uint64_t below[kBins];
  for (int i = threadIdx.x; i < kBins; i += kChosenThreads) {
    below[i] = state->bins[i] - state->above[i];
    state->above[i] = 0;
    if (step == kWangniSteps) state->bins[i] = 0;  // for those that are drawn
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const uint32_t mean = exact_mean_bits(below, static_cast<uint64_t>(n));
  state->limit = wangni_limit(rule, n, mean, state->count, step == 0, state->limit);
  state->count = 0;
}

// Step 3.
__global__ void __launch_bounds__(kChosenThreads)
    wangni_draw_kernel(WangniLaunch a, WangniScratch scratch) {
  __shared__ uint64_t bins[kBins];
  clear_bins<kChosenThreads>(bins);
  __syncthreads();
  const uint32_t limit = scratch.state->limit, least = wangni_sure(limit);
  const Range range = elements_of_warp(a.n);
  const int lane = threadIdx.x % kWarp;
  uint64_t sure = 0, drawn = 0;
  for (int64_t i = range.begin + lane; i < range.end; i += kWarp) {
    const float sum = sum_at(a.source, i);
    const uint32_t key = key_of(sum);
    if (key >= least) {
      ++sure;
    } else if (wangni_draws(a.rule, sum, limit, i)) {
      ++drawn;
      if (a.source.out != nullptr) atomic_add(&bins[bin_of(key)], mantissa_of(key));
    }
  }
  sure = sum_of_lanes(sure);
  drawn = sum_of_lanes(drawn);
  if (lane == 0) {
    scratch.sure[warp_of_grid()] = sure;
    scratch.drawn[warp_of_grid()] = drawn;
  }
  __syncthreads();
  add_bins(bins, scratch.state->bins);
}

// Step 4, one block; `warps` of the step before.
__global__ void __launch_bounds__(kSettleThreads)
    wangni_settle_kernel(WangniLaunch a, WangniScratch scratch, int64_t warps) {
  __shared__ uint64_t warp_sums[kSettleThreads / kWarp];
  const uint64_t sure = settle_counts(scratch.sure, warps, warp_sums);
  const uint64_t drawn = settle_counts(scratch.drawn, warps, warp_sums);
  if (threadIdx.x != 0) return;
  WangniState* const state = scratch.state;
  const bool finite = report(state->first, true, a.info) == kSelectOk;
  if (finite && !wangni_fits(state->top, state->limit)) a.info[kInfoStatus] = kSelectScaled;
  for (int i = 0; i < kInfoSize; ++i) a.drawn[i] = a.info[i];
  state->refused = a.info[kInfoStatus] != kSelectOk;
  if (state->refused) return;
  a.info[kInfoCount] = static_cast<int64_t>(sure);
  a.drawn[kInfoCount] = static_cast<int64_t>(drawn);
  if (drawn == 0) return;
  a.drawn[kInfoMean] = a.source.out == nullptr ? state->limit : exact_mean_bits(state->bins, drawn);
}

// Step 5; given: the source of step 1.
__global__ void __launch_bounds__(kChosenThreads)
    wangni_emit_kernel(WangniLaunch a, Source given, WangniScratch scratch) {
  if (scratch.state->refused) return restore(given, grid_first(), a.n, grid_stride());
  const bool all = in_place(given);  // of out is written
  const uint32_t limit = scratch.state->limit, least = wangni_sure(limit);
  const uint32_t scale = static_cast<uint32_t>(a.drawn[kInfoMean]);
  const Pairs<float> exact = {a.index, a.wide, a.value}, rounded = {a.at, a.wide, a.sent};
  const Range range = elements_of_warp(a.n);
  const int lane = threadIdx.x % kWarp;
  uint64_t next_sure = scratch.sure[warp_of_grid()], next_drawn = scratch.drawn[warp_of_grid()];
  for (int64_t row = range.begin; row < range.end; row += kWarp) {
    const int64_t i = row + lane;
    const float sum = i < range.end ? sum_at(a.source, i) : 0.0f;
    const bool sure = key_of(sum) >= least;
    const bool drawn = i < range.end && !sure && wangni_draws(a.rule, sum, limit, i);
    const float value = sure ? sum : with_sign_of(scale, sum);
    next_sure = exact.put_row(sure, next_sure, i, value);
    next_drawn = rounded.put_row(drawn, next_drawn, i, value);
    if (i < range.end && a.source.out != nullptr && (all || sure || drawn))
      a.source.out[i] = sure || drawn ? sum - value : sum;
  }
}

// The launches.

int64_t wangni_scratch_bytes() {
  return static_cast<int64_t>(sizeof(WangniState)) + 2 * 8 * kWangniBlocks * kChosenWarps;
}

cudaError_t launch_wangni(const WangniLaunch& args, cudaStream_t stream) {
  WangniScratch scratch = {static_cast<WangniState*>(args.scratch), nullptr, nullptr};
  WangniState* const state = scratch.state;
  scratch.sure = reinterpret_cast<uint64_t*>(state + 1);
  scratch.drawn = scratch.sure + kWangniBlocks * kChosenWarps;
  WangniLaunch later = args;
  later.source = kept_sums(args.source);
  const int64_t blocks = blocks_for(args.n, kChosenThreads, args.max_blocks);
  GCEXT_LAUNCH(wangni_clear_kernel, 1, kChosenThreads, stream, state);
  for (int step = 0; step <= kWangniSteps; ++step) {
    if (step == 0) {
      GCEXT_LAUNCH(wangni_sum_kernel, blocks, kChosenThreads, stream, args, state);
    } else {
      GCEXT_LAUNCH(wangni_above_kernel, blocks, kChosenThreads, stream, later, state);
    }
    GCEXT_LAUNCH(wangni_limit_kernel, 1, kChosenThreads, stream, args.rule, args.n, step, state);
  }
  GCEXT_LAUNCH(wangni_draw_kernel, blocks, kChosenThreads, stream, later, scratch);
  GCEXT_LAUNCH(wangni_settle_kernel, 1, kSettleThreads, stream, args, scratch,
               blocks * kChosenWarps);
  GCEXT_LAUNCH(wangni_emit_kernel, blocks, kChosenThreads, stream, later, args.source, scratch);
  return cudaSuccess;
}

}  // namespace gcext
