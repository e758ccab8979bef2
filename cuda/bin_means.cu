// bin_means on CUDA: the kernels and their launches. csrc/chunks/bin_means.h has the contract.
//
//   1. Sums: eight threads a cell, one for each lane, each in order; lanes are added by shuffles in
//      the order of add_lanes. Also clears the bins.
//   2. Rule, one warp: adds the cells in order.
//   3. Codes: a thread codes and packs eight values, and adds their mantissas to the bins, in
//   shared
//      memory where there are few codes.
//   4. Means, a thread a code.
//   5. Subtract: a thread a value.
//
// The values are few beside what they were chosen from: 12 bytes read a value, 4 scattered.
#include "bin_means_launch.h"
#include "common.cuh"

namespace gcext {

constexpr int kBinThreads = 256;
constexpr int kSharedCodes = 4;  // whose bins shared memory has

struct BinScratch {
  BinRule* rule;
  uint64_t* bins;  // kBinSlots a code
  BinSums* sums;   // one a cell of the capacity
};

__device__ inline int64_t bin_count(const BinMeansLaunch& a) {
  return a.info[kInfoStatus] == kSelectOk ? a.info[kInfoCount] : 0;
}

// Step 1.
__global__ void __launch_bounds__(kBinThreads)
    bin_sums_kernel(BinMeansLaunch a, BinScratch scratch) {
  const int64_t k = bin_count(a), cells = ceil_div(k, kBinCell);
  const int64_t slots = int64_t{kBinSlots} << a.bits;
  for (int64_t i = grid_first(); i < slots; i += grid_stride()) scratch.bins[i] = 0;
  const int lane = threadIdx.x % kLanes;
  for (int64_t at = grid_first() - threadIdx.x % kWarp; at < cells * kLanes; at += grid_stride()) {
    const int64_t cell = (at + threadIdx.x % kWarp) / kLanes;
    double sum = 0, squares = 0;
    if (cell < cells) {
      const int64_t begin = cell * kBinCell, end = begin + kBinCell < k ? begin + kBinCell : k;
      for (int64_t i = begin + lane; i < end; i += kLanes) {
        const double x = a.value[i];
        sum += x;
        squares += x * x;
      }
    }
    sum = sum_of_lanes<kLanes>(sum);
    squares = sum_of_lanes<kLanes>(squares);
    if (cell < cells && lane == 0) scratch.sums[cell] = {sum, squares};
  }
}

// Step 2, one warp.
__global__ void __launch_bounds__(kWarp) bin_rule_kernel(BinMeansLaunch a, BinScratch scratch) {
  const int64_t k = bin_count(a), cells = ceil_div(k, kBinCell);
  const int lane = threadIdx.x;
  BinSums whole = {0.0, 0.0};
  for (int64_t cell = 0; cell < cells; cell += kWarp) {
    const BinSums own = cell + lane < cells ? scratch.sums[cell + lane] : BinSums{0.0, 0.0};
    for (int l = 0; l < kWarp && cell + l < cells; ++l) {
      whole.sum += __shfl_sync(kWholeWarp, own.sum, l);
      whole.squares += __shfl_sync(kWholeWarp, own.squares, l);
    }
  }
  if (lane == 0) *scratch.rule = bin_rule(whole, k, int32_t{1} << a.bits, a.range);
}

// Step 3.
__global__ void __launch_bounds__(kBinThreads)
    bin_codes_kernel(BinMeansLaunch a, BinScratch scratch) {
  __shared__ uint64_t few[kSharedCodes * kBinSlots];
  for (int i = threadIdx.x; i < kSharedCodes * kBinSlots; i += kBinThreads) few[i] = 0;
  __syncthreads();
  const int64_t k = bin_count(a);
  const BinRule rule = *scratch.rule;
  const bool shared = rule.codes <= kSharedCodes;
  uint64_t* const bins = shared ? few : scratch.bins;
  for (int64_t first = 8 * grid_first(); first < k; first += 8 * grid_stride()) {
    const int n = static_cast<int>(k - first < 8 ? k - first : 8);
    uint64_t word = 0;
    for (int j = 0; j < n; ++j) {
      const float x = a.value[first + j];
      const uint32_t code = bin_code(rule, x, first + j);
      word |= uint64_t{code} << (j * a.bits);
      uint64_t* const its = bins + int64_t{code} * kBinSlots;
      atomic_add(&its[bin_of(key_of(x))], signed_mantissa(bits_of(x)));
      atomic_add(&its[kBins], 1);
    }
    uint8_t* const to = a.packed + first / 8 * a.bits;
    for (int byte = 0; 8 * byte < n * a.bits; ++byte)
      to[byte] = static_cast<uint8_t>(word >> (8 * byte));
  }
  __syncthreads();
  for (int i = threadIdx.x; shared && i < rule.codes * kBinSlots; i += kBinThreads) {
    if (few[i] != 0) atomic_add(&scratch.bins[i], few[i]);
  }
}

// Step 4.
__global__ void bin_table_kernel(BinMeansLaunch a, BinScratch scratch) {
  const uint64_t* const its = scratch.bins + int64_t{threadIdx.x} * kBinSlots;
  a.table[threadIdx.x] = its[kBins] == 0 ? 0.0f : float_of(exact_signed_mean_bits(its, its[kBins]));
}

// Step 5.
__global__ void __launch_bounds__(kBinThreads)
    bin_subtract_kernel(BinMeansLaunch a, BinScratch scratch) {
  const int64_t k = bin_count(a);
  const BinRule rule = *scratch.rule;
  for (int64_t i = grid_first(); i < k; i += grid_stride()) {
    const int64_t place =
        a.wide ? static_cast<const int64_t*>(a.index)[i] : static_cast<const int32_t*>(a.index)[i];
    a.out[place] = a.value[i] - a.table[bin_code(rule, a.value[i], i)];
  }
}

// The launches.

int64_t bin_means_scratch_bytes(int64_t capacity, int bits) {
  return static_cast<int64_t>(sizeof(BinRule)) + (int64_t{8 * kBinSlots} << bits) +
         ceil_div(capacity, kBinCell) * static_cast<int64_t>(sizeof(BinSums));
}

cudaError_t launch_bin_means(const BinMeansLaunch& args, cudaStream_t stream) {
  BinScratch scratch = {static_cast<BinRule*>(args.scratch), nullptr, nullptr};
  scratch.bins = reinterpret_cast<uint64_t*>(scratch.rule + 1);
  scratch.sums = reinterpret_cast<BinSums*>(scratch.bins + (int64_t{kBinSlots} << args.bits));
  const int64_t k = args.capacity > 0 ? args.capacity : 1;
  const int64_t most = args.max_blocks;
  const int64_t cell_blocks = blocks_for(ceil_div(k, kBinCell) * kLanes, kBinThreads, most);
  GCEXT_LAUNCH(bin_sums_kernel, cell_blocks, kBinThreads, stream, args, scratch);
  GCEXT_LAUNCH(bin_rule_kernel, 1, kWarp, stream, args, scratch);
  GCEXT_LAUNCH(bin_codes_kernel, blocks_for(ceil_div(k, 8), kBinThreads, most), kBinThreads, stream,
               args, scratch);
  GCEXT_LAUNCH(bin_table_kernel, 1, 1 << args.bits, stream, args, scratch);
  if (args.out == nullptr) return cudaSuccess;
  GCEXT_LAUNCH(bin_subtract_kernel, blocks_for(k, kBinThreads, most), kBinThreads, stream, args,
               scratch);
  return cudaSuccess;
}

}  // namespace gcext
