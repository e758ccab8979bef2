// threshold on CUDA: the kernels and their launches. csrc/threshold.h has the contract.
//
//   1. Count: how many elements each warp sends; the first of tensor, memory and sum that is not
//      finite.
//   2. Settle, one block: the status; how many are sent in all, and before each warp.
//   3. Emit, a warp the same elements: pairs in order, and out.
//
// Step 1 leaves the sums in out; in place, where nothing may be written before they are known to be
// finite, step 3 computes them anew. Traffic, in words an element: 4, in place 5, and what is sent.
#include "chosen.cuh"
#include "threshold_launch.h"

namespace gcext {

__global__ void threshold_clear_kernel(ChosenState* state) { clear_chosen(state); }

// Step 1.
__global__ void __launch_bounds__(kChosenThreads)
    threshold_count_kernel(ThresholdLaunch a, ChosenState* state, uint64_t* counts) {
  const ThresholdRule rule = threshold_rule(*a.limit, a.scale);
  const Range range = elements_of_warp(a.n);
  const Held held = held_of(a.source);
  const int lane = threadIdx.x % kWarp;
  uint64_t count = 0;
  for (int64_t i = range.begin + lane; i < range.end; i += kWarp) {
    const float sum = held_sum_at(a.source, held, i);
    if (key_of(sum) >= kInfKey) note(a.source, i, &state->first);
    if (keeps_sums(a.source)) a.source.out[i] = sum;
    count += rule.sends(sum);
  }
  count = sum_of_lanes(count);
  if (lane == 0) counts[warp_of_grid()] = count;
}

// Step 2, one block; `warps` of the step before.
__global__ void __launch_bounds__(kSettleThreads)
    threshold_settle_kernel(ThresholdLaunch a, ChosenState* state, uint64_t* counts,
                            int64_t warps) {
  __shared__ uint64_t warp_sums[kSettleThreads / kWarp];
  const uint64_t total = settle_counts(counts, warps, warp_sums);
  if (threadIdx.x != 0) return;
  state->refused = report(state->first, true, a.info) != kSelectOk;
  if (state->refused) return;
  a.info[kInfoCount] = static_cast<int64_t>(total);
  a.info[kInfoMean] = total == 0 ? 0 : a.scale;
}

// Step 3; sums: kept_sums of the source.
__global__ void __launch_bounds__(kChosenThreads)
    threshold_emit_kernel(ThresholdLaunch a, Source sums, const ChosenState* state,
                          const uint64_t* counts) {
  const ThresholdRule rule = threshold_rule(*a.limit, a.scale);
  if (grid_first() == 0) {
    begin_next(a.source, a.next, state->refused);
    if (a.next != nullptr && !state->refused) set_sent(a.next, rule);
  }
  if (state->refused) return restore(a.source, grid_first(), a.n, grid_stride());
  const Held held = held_of(sums);
  emit_chosen(
      sums.out, a.next == nullptr, keeps_sums(a.source), elements_of_warp(a.n),
      counts[warp_of_grid()], {a.index, a.wide, a.value},
      [&](int64_t i) { return held_sum_at(sums, held, i); },
      [&](int64_t, float sum) { return rule.sends(sum); },
      [&](float sum) { return rule.sent(sum); });
}

// The launches.

int64_t threshold_scratch_bytes() {
  return static_cast<int64_t>(sizeof(ChosenState)) + 8 * kThresholdBlocks * kChosenWarps;
}

cudaError_t launch_threshold(const ThresholdLaunch& args, cudaStream_t stream) {
  ChosenState* const state = static_cast<ChosenState*>(args.scratch);
  uint64_t* const counts = reinterpret_cast<uint64_t*>(state + 1);
  const int64_t blocks = blocks_for(args.n, kChosenThreads, args.max_blocks);
  GCEXT_LAUNCH(threshold_clear_kernel, 1, 1, stream, state);
  GCEXT_LAUNCH(threshold_count_kernel, blocks, kChosenThreads, stream, args, state, counts);
  GCEXT_LAUNCH(threshold_settle_kernel, 1, kSettleThreads, stream, args, state, counts,
               blocks * kChosenWarps);
  GCEXT_LAUNCH(threshold_emit_kernel, blocks, kChosenThreads, stream, args, kept_sums(args.source),
               state, counts);
  return cudaSuccess;
}

}  // namespace gcext
