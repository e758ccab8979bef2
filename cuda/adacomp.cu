// adacomp on CUDA: the kernels and their launches. csrc/chunks/adacomp.h has the contract.
//
//   1. Bins, a warp a bin and a block a contiguous range of them: gmax, its mantissa to one bin an
//      exponent; the chosen of the bin, counted; the first element of tensor, memory and sum that
//      is not finite.
//   2. Settle, one block: the status; the scale; how many are chosen.
//   3. Emit, a block the same range: every block adds up the counts before its own; pairs in order,
//      by ballots, and out.
//
// As on the CPU the sum is computed twice rather than kept, first to validate it. Everything that
// blocks add up is an integer. Traffic, in words an element: 5, and what is sent.
#include "adacomp_launch.h"
#include "sum.cuh"

namespace gcext {

constexpr int kAdaCompThreads = 256;
constexpr int kAdaCompWarps = kAdaCompThreads / kWarp;

// On the device, between the kernels of one call.
struct AdaCompState {
  uint64_t bins[kBins];
  FirstNonFinite first;
  uint64_t refused;
};

struct AdaCompScratch {
  AdaCompState* state;
  uint64_t* counts;  // chosen, an entry a block
  uint32_t* gmax;    // keys, an entry a bin
};

__global__ void __launch_bounds__(kAdaCompThreads) adacomp_clear_kernel(AdaCompState* state) {
  for (int i = threadIdx.x; i < kBins; i += kAdaCompThreads) state->bins[i] = 0;
  if (threadIdx.x != 0) return;
  state->first = {kNowhere, kNowhere, kNowhere};
  state->refused = 0;
}

// Step 1.
__global__ void __launch_bounds__(kAdaCompThreads)
    adacomp_bins_kernel(AdaCompLaunch a, AdaCompScratch scratch) {
  __shared__ uint64_t bins[kBins];
  __shared__ uint64_t warp_sums[kAdaCompWarps];
  for (int i = threadIdx.x; i < kBins; i += kAdaCompThreads) bins[i] = 0;
  __syncthreads();
  const Range range = range_of_block(a.bins());
  const int lane = threadIdx.x % kWarp;
  uint64_t count = 0, total;
  for (int64_t bin = range.begin + threadIdx.x / kWarp; bin < range.end; bin += kAdaCompWarps) {
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
  block_exclusive_sum(count, warp_sums, &total);
  if (threadIdx.x == 0) scratch.counts[blockIdx.x] = total;
  for (int i = threadIdx.x; i < kBins; i += kAdaCompThreads) {
    if (bins[i] != 0) atomic_add(&scratch.state->bins[i], bins[i]);
  }
}

// Step 2, one block; `blocks` of the step before.
__global__ void __launch_bounds__(kAdaCompThreads)
    adacomp_settle_kernel(AdaCompLaunch a, AdaCompScratch scratch, int64_t blocks) {
  __shared__ uint64_t warp_sums[kAdaCompWarps];
  uint64_t own = 0, total;
  for (int64_t i = threadIdx.x; i < blocks; i += kAdaCompThreads) own += scratch.counts[i];
  block_exclusive_sum(own, warp_sums, &total);
  if (threadIdx.x != 0) return;
  AdaCompState* const state = scratch.state;
  state->refused = report(state->first, true, a.info) != kSelectOk;
  if (state->refused) return;
  const uint32_t scale = exact_mean_bits(state->bins, static_cast<uint64_t>(a.bins()));
  a.info[kInfoCount] = scale == 0 ? 0 : static_cast<int64_t>(total);
  a.info[kInfoMean] = total == 0 ? 0 : scale;
}

// Step 3.
__global__ void __launch_bounds__(kAdaCompThreads)
    adacomp_emit_kernel(AdaCompLaunch a, AdaCompScratch scratch) {
  __shared__ uint64_t warp_sums[kAdaCompWarps];
  if (scratch.state->refused) return restore(a.source, grid_first(), a.n, grid_stride());
  const uint32_t scale = static_cast<uint32_t>(a.info[kInfoMean]);
  uint64_t before = 0, next;
  for (unsigned i = threadIdx.x; i < blockIdx.x; i += kAdaCompThreads) before += scratch.counts[i];
  block_exclusive_sum(before, warp_sums, &next);
  const Range range = range_of_block(a.bins());
  const int64_t until = range.end * a.bin, end = until < a.n ? until : a.n;
  for (int64_t at = range.begin * a.bin; at < end; at += kAdaCompThreads) {
    const int64_t i = at + threadIdx.x;
    const float sum = i < end ? sum_at(a.source, i) : 0.0f;
    const bool chosen =
        i < end && scale != 0 && adacomp_chooses(sum, a.source.tensor[i], scratch.gmax[i / a.bin]);
    uint64_t total;
    const uint64_t place = next + block_exclusive_sum(chosen, warp_sums, &total);
    const float sent = chosen ? float_of(scale | (bits_of(sum) & 0x80000000u)) : 0.0f;
    if (chosen) {
      if (a.wide) {
        static_cast<int64_t*>(a.index)[place] = i;
      } else {
        static_cast<int32_t*>(a.index)[place] = static_cast<int32_t>(i);
      }
      a.value[place] = sent;
    }
    if (i < end && a.source.out != nullptr) a.source.out[i] = chosen ? sum - sent : sum;
    next += total;
  }
}

// The launches.

int64_t adacomp_scratch_bytes(int64_t n, int64_t bin) {
  return static_cast<int64_t>(sizeof(AdaCompState)) + 8 * kAdaCompBlocks + 4 * ceil_div(n, bin);
}

cudaError_t launch_adacomp(const AdaCompLaunch& args, cudaStream_t stream) {
  AdaCompScratch scratch = {static_cast<AdaCompState*>(args.scratch), nullptr, nullptr};
  scratch.counts = reinterpret_cast<uint64_t*>(scratch.state + 1);
  scratch.gmax = reinterpret_cast<uint32_t*>(scratch.counts + kAdaCompBlocks);
  const int64_t blocks = blocks_for(args.n, kAdaCompThreads, args.max_blocks);
  GCEXT_LAUNCH(adacomp_clear_kernel, 1, kAdaCompThreads, stream, scratch.state);
  GCEXT_LAUNCH(adacomp_bins_kernel, blocks, kAdaCompThreads, stream, args, scratch);
  GCEXT_LAUNCH(adacomp_settle_kernel, 1, kAdaCompThreads, stream, args, scratch, blocks);
  GCEXT_LAUNCH(adacomp_emit_kernel, blocks, kAdaCompThreads, stream, args, scratch);
  return cudaSuccess;
}

}  // namespace gcext
