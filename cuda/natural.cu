// natural on CUDA: the kernels and their launches. csrc/natural.h has the contract.
//
// The host learns later that a sum is not finite; then the last kernel makes out a copy of memory.
//
//   1. Draw: powers, of two elements by the same 64 bits; out, where that is not the memory,
//      which nothing may be written to before all sums are known to be finite; the first element of
//      tensor, memory and sum that is not.
//   2. Report: the status.
//   3. Subtract: out, in place.
//
//   4. Back: a thread a power.
//
// Traffic: tensor and memory are read once, out and powers (2 bytes each) written once; in place
// tensor, memory and powers are read twice. Back: 2 bytes read and 4 written an element.
#include "common.cuh"
#include "natural_launch.h"
#include "sum.cuh"

namespace gcext {

constexpr int kNaturalThreads = 256;

// On the device, between the kernels of one call.
struct NaturalState {
  FirstNonFinite first;
  uint64_t refused;
};

// One thread.
__global__ void natural_clear_kernel(NaturalState* state) {
  state->first = {kNowhere, kNowhere, kNowhere};
  state->refused = 0;
}

// Step 1.
__global__ void __launch_bounds__(kNaturalThreads)
    natural_draw_kernel(Source source, int64_t n, float scale, uint64_t key, int32_t most,
                        int16_t* power, NaturalState* state) {
  const int lane = threadIdx.x % kWarp;
  // Whole warps go round together: every lane must come to the shuffles.
  for (int64_t row = grid_first() - lane; row < ceil_div(n, 2); row += grid_stride()) {
    const uint64_t pair = draw_pair(key, static_cast<uint64_t>(row + lane));
    for (int half = 0; half < 2; ++half) {
      const uint64_t own = __shfl_sync(kWholeWarp, pair, half * kWarp / 2 + lane / 2);
      const int64_t i = 2 * row + half * kWarp + lane;
      if (i >= n) continue;
      const float acc = sum_at(source, i);
      const int32_t drawn = power_of(acc, half_of_pair(own, i), most);
      power[i] = static_cast<int16_t>(drawn);
      if (key_of(acc) >= kInfKey) {
        note(source, i, &state->first);
      } else if (keeps_sums(source)) {
        source.out[i] = acc - power_value(scale, drawn);
      }
    }
  }
}

// Step 2, one thread.
__global__ void natural_report_kernel(int64_t n, NaturalState* state, int64_t* info) {
  state->refused = report(state->first, true, info) != kSelectOk;
  if (!state->refused) info[kInfoCount] = n;
}

// Step 3.
__global__ void __launch_bounds__(kNaturalThreads)
    natural_subtract_kernel(Source source, int64_t n, float scale, const int16_t* power,
                            const NaturalState* state) {
  if (state->refused) return restore(source, grid_first(), n, grid_stride());
  if (!in_place(source)) return;
  for (int64_t i = grid_first(); i < n; i += grid_stride())
    source.out[i] = sum_at(source, i) - power_value(scale, power[i]);
}

// Step 4.
__global__ void __launch_bounds__(kNaturalThreads)
    power_values_kernel(const int16_t* power, int64_t n, float scale, float* value) {
  for (int64_t i = grid_first(); i < n; i += grid_stride())
    value[i] = power[i] > -kPowers && power[i] < kPowers ? power_value(scale, power[i]) : 0.0f;
}

// The launches.

int64_t natural_scratch_bytes() { return sizeof(NaturalState); }

cudaError_t launch_natural(const NaturalLaunch& args, cudaStream_t stream) {
  NaturalState* state = static_cast<NaturalState*>(args.scratch);
  const int32_t most = most_power(args.scale);
  const int64_t pair_blocks = blocks_for(ceil_div(args.n, 2), kNaturalThreads, args.max_blocks);
  GCEXT_LAUNCH(natural_clear_kernel, 1, 1, stream, state);
  GCEXT_LAUNCH(natural_draw_kernel, pair_blocks, kNaturalThreads, stream, args.source, args.n,
               args.scale, args.key, most, args.power, state);
  GCEXT_LAUNCH(natural_report_kernel, 1, 1, stream, args.n, state, args.info);
  if (args.source.out == nullptr) return cudaSuccess;
  const int64_t blocks = blocks_for(args.n, kNaturalThreads, args.max_blocks);
  GCEXT_LAUNCH(natural_subtract_kernel, blocks, kNaturalThreads, stream, args.source, args.n,
               args.scale, args.power, state);
  return cudaSuccess;
}

cudaError_t launch_power_values(const int16_t* power, int64_t n, float scale, float* value,
                                int64_t max_blocks, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  GCEXT_LAUNCH(power_values_kernel, blocks_for(n, kNaturalThreads, max_blocks), kNaturalThreads,
               stream, power, n, scale, value);
  return cudaSuccess;
}

}  // namespace gcext
