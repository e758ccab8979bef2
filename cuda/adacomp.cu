// adacomp on CUDA: the kernels and their launches. csrc/chunks/adacomp.h has the contract.
//
//   1. Bins, a warp a contiguous range of them: gmax, its mantissa to one bin an exponent; the
//      chosen of the bin, counted; the first element of tensor, memory and sum that is not finite.
//   2. Settle, one block: the status; the scale; how many are chosen, in all and before each warp.
//   3. Emit, a warp the same bins: pairs in order, and out.
//
// As on the CPU the sum is computed twice rather than kept, first to validate it. Everything that
// blocks add up is an integer. Traffic, in words an element: 5, and what is sent.
#include "adacomp_launch.h"
#include "chosen.cuh"
#include "near_bins.cuh"

namespace gcext {

// On the device, between the kernels of one call.
struct AdaCompState : ChosenState {
  uint64_t bins[kBins];
};

struct AdaCompScratch {
  AdaCompState* state;
  uint64_t* counts;  // chosen, an entry a warp
  uint32_t* gmax;    // keys, an entry a bin
};

__global__ void __launch_bounds__(kChosenThreads) adacomp_clear_kernel(AdaCompState* state) {
  clear_bins<kChosenThreads>(state->bins);
  if (threadIdx.x == 0) clear_chosen(state);
}

// Step 1.
__global__ void __launch_bounds__(kChosenThreads)
    adacomp_bins_kernel(AdaCompLaunch a, AdaCompScratch scratch) {
  __shared__ uint64_t bins[kBins];
  clear_bins<kChosenThreads>(bins);
  __syncthreads();
  const Range range = range_of_warp(a.bins());
  const int lane = threadIdx.x % kWarp;
  uint64_t count = 0;
  for (int64_t bin = range.begin; bin < range.end; ++bin) {
    const int64_t begin = bin * a.bin, end = begin + a.bin < a.n ? begin + a.bin : a.n;
    uint32_t gmax = 0;
    for (int64_t i = begin + lane; i < end; i += kWarp) {
      const uint32_t key = key_of(sum_at(a.source, i));
      gmax = key > gmax ? key : gmax;
      if (key >= kInfKey) note(a.source, i, &scratch.state->first);
    }
    gmax = largest_of_lanes(gmax);
    for (int64_t i = begin + lane; i < end; i += kWarp)
      count += adacomp_chooses(sum_at(a.source, i), a.source.tensor[i], gmax);
    if (lane != 0) continue;
    scratch.gmax[bin] = gmax;
    if (gmax < kInfKey) atomic_add(&bins[bin_of(gmax)], mantissa_of(gmax));
  }
  count = sum_of_lanes(count);
  if (lane == 0) scratch.counts[warp_of_grid()] = count;
  __syncthreads();
  add_bins(bins, scratch.state->bins);
}

// Step 2, one block; `warps` of the step before.
__global__ void __launch_bounds__(kSettleThreads)
    adacomp_settle_kernel(AdaCompLaunch a, AdaCompScratch scratch, int64_t warps) {
  __shared__ uint64_t warp_sums[kSettleThreads / kWarp];
  const uint64_t total = settle_counts(scratch.counts, warps, warp_sums);
  if (threadIdx.x != 0) return;
  AdaCompState* const state = scratch.state;
  state->refused = report(state->first, true, a.info) != kSelectOk;
  if (state->refused) return;
  const uint32_t scale = exact_mean_bits(state->bins, static_cast<uint64_t>(a.bins()));
  a.info[kInfoCount] = scale == 0 ? 0 : static_cast<int64_t>(total);
  a.info[kInfoMean] = total == 0 ? 0 : scale;
}

// Step 3.
__global__ void __launch_bounds__(kChosenThreads)
    adacomp_emit_kernel(AdaCompLaunch a, AdaCompScratch scratch) {
  if (scratch.state->refused) return restore(a.source, grid_first(), a.n, grid_stride());
  const uint32_t scale = static_cast<uint32_t>(a.info[kInfoMean]);
  const Range bins = range_of_warp(a.bins());
  const int64_t until = bins.end * a.bin;
  emit_chosen(
      a.source.out, true, false, {bins.begin * a.bin, until < a.n ? until : a.n},
      scratch.counts[warp_of_grid()], {a.index, a.wide, a.value},
      [&](int64_t i) { return sum_at(a.source, i); },
      [&](int64_t i, float sum) {
        return scale != 0 && adacomp_chooses(sum, a.source.tensor[i], scratch.gmax[i / a.bin]);
      },
      [&](float sum) { return with_sign_of(scale, sum); });
}

// The launches.

int64_t adacomp_scratch_bytes(int64_t n, int64_t bin) {
  return static_cast<int64_t>(sizeof(AdaCompState)) + 8 * kAdaCompBlocks * kChosenWarps +
         4 * ceil_div(n, bin);
}

cudaError_t launch_adacomp(const AdaCompLaunch& args, cudaStream_t stream) {
  AdaCompScratch scratch = {static_cast<AdaCompState*>(args.scratch), nullptr, nullptr};
  scratch.counts = reinterpret_cast<uint64_t*>(scratch.state + 1);
  scratch.gmax = reinterpret_cast<uint32_t*>(scratch.counts + kAdaCompBlocks * kChosenWarps);
  const int64_t blocks = blocks_for(args.n, kChosenThreads, args.max_blocks);
  GCEXT_LAUNCH(adacomp_clear_kernel, 1, kChosenThreads, stream, scratch.state);
  GCEXT_LAUNCH(adacomp_bins_kernel, blocks, kChosenThreads, stream, args, scratch);
  GCEXT_LAUNCH(adacomp_settle_kernel, 1, kSettleThreads, stream, args, scratch,
               blocks * kChosenWarps);
  GCEXT_LAUNCH(adacomp_emit_kernel, blocks, kChosenThreads, stream, args, scratch);
  return cudaSuccess;
}

}  // namespace gcext
