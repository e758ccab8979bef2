// select on CUDA: the kernels. csrc/select.h has the contract, select.cu the sequence.
//
//   elements  |--tile--|--tile--|--tile--|--tile--|--tile--|-    a thread: one element of a tile
//             <-------- block 0 ---------><-------- block 1 ---  a block: a contiguous range
//
// 1. Accumulate: acc = a*tensor + b*memory to out; the first index where tensor, memory or acc is
//    not finite. In the in-place form a pass over tensor comes before, as nothing may be written
//    where tensor is not finite.
// 2. Judge: status and where. From here on every kernel does nothing if the status is set.
// 3. Three rounds of a radix select find the k-th key, 11, 11 and 9 bits: a histogram of the keys
//    that share the digits found so far, then one block walks it from the top. What is left of the
//    rank is the number of ties due.
// 4. Tally: keys greater than and equal to the k-th per block, and the exact sum of the greater
//    ones by exponent.
// 5. Offsets: a scan over the blocks; the count, and the mean correctly rounded.
// 6. Emit in order of index: an element with g greater and e equal ones before it goes to place g +
//    min(e, ties due), so ties go to the lowest indices. out is mended in the same breath.
//
// Everything that blocks add up is an integer, so no order of execution is seen in the result.
//
// Where k exceeds the number of non-zeros, the k-th key is 0: all non-zeros are greater, and no tie
// is due.
#pragma once

#include "common.cuh"
#include "select_launch.h"

namespace gcext {

constexpr int kSelectThreads = 256;
constexpr int kRounds = 3;
constexpr int kDigits = 1 << 11;
constexpr uint64_t kNowhere = UINT64_MAX;

GCEXT_HD inline int digit_shift(int round) { return round == 0 ? 20 : round == 1 ? 9 : 0; }
GCEXT_HD inline int digit_bits(int round) { return round == 2 ? 9 : 11; }

// On the device, between the kernels of one call.
struct SelectState {
  uint64_t counts[kRounds][kDigits];  // keys by digit, of those that share the digits before
  uint64_t bins[kBins];               // sums of mantissas above the k-th key, as in select.h
  // The first index that is not finite, or kNowhere.
  uint64_t first_tensor, first_memory, first_sum;
  // Of the k-th key, among those that share its digits found so far; after the last, the ties due.
  uint64_t rank;
  uint32_t key;      // the digits of the k-th key found so far, zeros below
  uint32_t mean;     // bits
  uint32_t refused;  // the status is not kSelectOk
};

// Of one block's range in step 4; of all the ranges before it from step 5 on.
struct BlockCounts {
  uint64_t greater, equal;
};

struct BlockRange {
  int64_t begin, end;
};

// The same in every kernel of a call, as they have the same grid. Whole tiles, so that rows of
// threads stay aligned.
__device__ inline BlockRange block_range(int64_t n) {
  const int64_t step = ceil_div(ceil_div(n, gridDim.x), kSelectThreads) * kSelectThreads;
  const int64_t begin = step * blockIdx.x, end = begin + step;
  return {begin < n ? begin : n, end < n ? end : n};
}

__device__ inline uint32_t float_bits(float x) { return static_cast<uint32_t>(__float_as_int(x)); }
__device__ inline float bits_float(uint32_t bits) { return __int_as_float(static_cast<int>(bits)); }
__device__ inline uint32_t key_of(float x) { return float_bits(x) & 0x7fffffffu; }

// acc after step 1: stored, or recomputed where it is not.
__device__ inline float stored_acc(const Source& source, int64_t i) {
  return source.out != nullptr ? source.out[i] : source.a * source.tensor[i];
}

// One block: the state of a new call.
__global__ void __launch_bounds__(kSelectThreads)
    select_clear_kernel(SelectState* state, int64_t* info, int64_t k) {
  for (int i = threadIdx.x; i < kRounds * kDigits; i += kSelectThreads)
    state->counts[i / kDigits][i % kDigits] = 0;
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) state->bins[i] = 0;
  if (threadIdx.x < kInfoSize) info[threadIdx.x] = 0;
  if (threadIdx.x != 0) return;
  state->first_tensor = state->first_memory = state->first_sum = kNowhere;
  state->rank = static_cast<uint64_t>(k);
  state->key = state->mean = state->refused = 0;
}

// Step 1, in-place form: looks at tensor before anything is written.
__global__ void __launch_bounds__(kSelectThreads)
    select_check_kernel(const float* tensor, int64_t n, SelectState* state) {
  const BlockRange range = block_range(n);
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kSelectThreads) {
    if (key_of(tensor[i]) < kInfKey) continue;
    atomic_min(&state->first_tensor, static_cast<uint64_t>(i));
    return;  // a thread's indices rise
  }
}

// Step 1.
__global__ void __launch_bounds__(kSelectThreads)
    select_accumulate_kernel(Source source, int64_t n, bool in_place, SelectState* state) {
  if (in_place && state->first_tensor != kNowhere) return;
  const BlockRange range = block_range(n);
  uint64_t first_tensor = kNowhere, first_memory = kNowhere, first_sum = kNowhere;
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kSelectThreads) {
    const float t = source.tensor[i];
    float acc = source.a * t;
    float m = 0;
    if (source.memory != nullptr) {
      m = source.memory[i];
      acc += source.b * m;
    }
    if (source.out != nullptr) source.out[i] = acc;
    if (key_of(acc) < kInfKey) continue;  // then t and m are finite, too
    const uint64_t at = static_cast<uint64_t>(i);
    if (at < first_sum) first_sum = at;
    if (in_place) continue;  // memory is gone: all that can be said is where the sum is not finite
    if (key_of(t) >= kInfKey && at < first_tensor) first_tensor = at;
    if (key_of(m) >= kInfKey && at < first_memory) first_memory = at;
  }
  if (first_sum != kNowhere) atomic_min(&state->first_sum, first_sum);
  if (first_tensor != kNowhere) atomic_min(&state->first_tensor, first_tensor);
  if (first_memory != kNowhere) atomic_min(&state->first_memory, first_memory);
}

// Step 2, one thread.
__global__ void select_judge_kernel(bool stored, SelectState* state, int64_t* info) {
  SelectStatus status = kSelectOk;
  uint64_t where = 0;
  if (state->first_tensor != kNowhere) {
    status = kSelectTensor;
    where = state->first_tensor;
  } else if (state->first_memory != kNowhere) {
    status = kSelectMemory;
    where = state->first_memory;
  } else if (state->first_sum != kNowhere) {
    status = kSelectOverflow;
    where = stored ? state->first_sum : kNowhere;  // -1, as on the CPU: no out to point into
  }
  state->refused = status != kSelectOk;
  info[kInfoStatus] = status;
  info[kInfoWhere] = static_cast<int64_t>(where);
}

// Step 3: counts digits. A block's range is far below 2^32 elements, so its own counts fit 32 bits.
__global__ void __launch_bounds__(kSelectThreads)
    select_histogram_kernel(Source source, int64_t n, int round, SelectState* state) {
  __shared__ uint32_t counts[kDigits];
  if (state->refused) return;
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) counts[i] = 0;
  __syncthreads();
  const int shift = digit_shift(round), bits = digit_bits(round);
  const uint32_t found = state->key >> (shift + bits);
  const BlockRange range = block_range(n);
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kSelectThreads) {
    const uint32_t key = key_of(stored_acc(source, i));
    if (key >> (shift + bits) == found) atomicAdd(&counts[(key >> shift) & ((1u << bits) - 1)], 1u);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) {
    if (counts[i] != 0) atomic_add(&state->counts[round][i], counts[i]);
  }
}

// Step 3, one block: the digit whose keys, counted from the top, reach the rank. Each thread owns a
// run of digits.
__global__ void __launch_bounds__(kSelectThreads)
    select_digit_kernel(int round, SelectState* state) {
  __shared__ uint64_t warp_sums[kSelectThreads / kWarp];
  constexpr int kOwn = kDigits / kSelectThreads;
  if (state->refused) return;
  const uint64_t* counts = state->counts[round];
  const uint64_t rank = state->rank;
  const int top = kDigits - 1 - static_cast<int>(threadIdx.x) * kOwn;
  uint64_t own = 0, total;
  for (int i = 0; i < kOwn; ++i) own += counts[top - i];
  uint64_t passed = block_exclusive_sum(own, warp_sums, &total);
  if (rank <= passed || rank > passed + own) return;
  int digit = top;  // one thread gets here
  for (; rank > passed + counts[digit]; --digit) passed += counts[digit];
  state->key |= static_cast<uint32_t>(digit) << digit_shift(round);
  state->rank = rank - passed;
}

// Step 4.
__global__ void __launch_bounds__(kSelectThreads)
    select_tally_kernel(Source source, int64_t n, SelectState* state, BlockCounts* blocks) {
  __shared__ uint64_t bins[kBins];
  __shared__ uint32_t greater, equal;
  if (state->refused) return;
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) bins[i] = 0;
  if (threadIdx.x == 0) greater = equal = 0;
  __syncthreads();
  const uint32_t kth = state->key;
  const BlockRange range = block_range(n);
  uint32_t own_greater = 0, own_equal = 0;
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kSelectThreads) {
    const uint32_t key = key_of(stored_acc(source, i));
    own_equal += key == kth;
    if (key <= kth) continue;
    ++own_greater;
    atomic_add(&bins[bin_of(key)], mantissa_of(key));
  }
  if (own_greater != 0) atomicAdd(&greater, own_greater);
  if (own_equal != 0) atomicAdd(&equal, own_equal);
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) {
    if (bins[i] != 0) atomic_add(&state->bins[i], bins[i]);
  }
  if (threadIdx.x == 0) blocks[blockIdx.x] = {greater, equal};
}

// Step 5, one block: blocks[i] becomes the sum of those before it.
__global__ void __launch_bounds__(kSelectThreads)
    select_offsets_kernel(int64_t count, SelectState* state, BlockCounts* blocks, int64_t* info) {
  __shared__ uint64_t warp_sums[kSelectThreads / kWarp];
  if (state->refused) return;
  uint64_t greater = 0, equal = 0;  // of the blocks in earlier turns of the loop
  for (int64_t at = 0; at < count; at += kSelectThreads) {
    const int64_t i = at + threadIdx.x;
    const BlockCounts own = i < count ? blocks[i] : BlockCounts{0, 0};
    uint64_t greater_here, equal_here;
    const uint64_t greater_before = block_exclusive_sum(own.greater, warp_sums, &greater_here);
    const uint64_t equal_before = block_exclusive_sum(own.equal, warp_sums, &equal_here);
    if (i < count) blocks[i] = {greater + greater_before, equal + equal_before};
    greater += greater_here;
    equal += equal_here;
  }
  if (threadIdx.x != 0) return;
  const uint32_t kth = state->key;
  if (kth == 0) state->rank = 0;  // zeros never travel
  const uint64_t chosen = greater + state->rank;
  state->bins[bin_of(kth)] += state->rank * mantissa_of(kth);
  state->mean = chosen != 0 ? exact_mean_bits(state->bins, chosen) : 0;
  info[kInfoCount] = static_cast<int64_t>(chosen);
  info[kInfoMean] = state->mean;
}

// Where the chosen pairs go.
struct SelectOutput {
  void* index;
  bool wide;
  bool ternary;
  float* value;
};

// Step 6.
__global__ void __launch_bounds__(kSelectThreads)
    select_emit_kernel(Source source, int64_t n, const SelectState* state,
                       const BlockCounts* blocks, SelectOutput to) {
  // Greater ones in the low half, equal ones in the high: neither exceeds a tile.
  __shared__ uint32_t warp_counts[kSelectThreads / kWarp];
  if (state->refused) return;
  const uint32_t kth = state->key, mean = state->mean;
  const uint64_t due = state->rank;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const BlockRange range = block_range(n);
  uint64_t greater_before = blocks[blockIdx.x].greater, equal_before = blocks[blockIdx.x].equal;
  for (int64_t at = range.begin; at < range.end; at += kSelectThreads) {
    const int64_t i = at + threadIdx.x;
    const float acc = i < range.end ? stored_acc(source, i) : 0.0f;
    const uint32_t key = key_of(acc);
    const bool greater = key > kth;
    const bool equal = key == kth;  // beyond the range: only where no tie is due
    const unsigned greaters = __ballot_sync(kWholeWarp, greater);
    const unsigned equals = __ballot_sync(kWholeWarp, equal);
    if (lane == 0) {
      warp_counts[warp] = static_cast<uint32_t>(__popc(greaters) | __popc(equals) << 16);
    }
    __syncthreads();
    uint32_t before = 0, tile = 0;
    for (int w = 0; w < kSelectThreads / kWarp; ++w) {
      if (w < warp) before += warp_counts[w];
      tile += warp_counts[w];
    }
    __syncthreads();
    const uint64_t e = equal_before + (before >> 16) + __popc(equals & lanes_below());
    if (greater || (equal && e < due)) {
      const uint64_t g = greater_before + (before & 0xffffu) + __popc(greaters & lanes_below());
      const uint64_t place = g + (e < due ? e : due);
      const float sent = to.ternary ? bits_float(mean | (float_bits(acc) & 0x80000000u)) : acc;
      if (to.wide) {
        static_cast<int64_t*>(to.index)[place] = i;
      } else {
        static_cast<int32_t*>(to.index)[place] = static_cast<int32_t>(i);
      }
      to.value[place] = sent;
      if (source.out != nullptr) source.out[i] = acc - sent;
    }
    greater_before += tile & 0xffffu;
    equal_before += tile >> 16;
  }
}

}  // namespace gcext
