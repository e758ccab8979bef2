// select on CUDA, steps 4 to 6 of select.cuh: the search, the tally, the emission. A block reads
// its share: the candidates of its range, or, where those are useless, the range itself.
#pragma once

#include "select.cuh"

namespace gcext {

// Step 4: counts the share's keys that have the digits found so far. counts is shared memory,
// zeroed.
__device__ inline void count_digits(const Share& share, int round, uint32_t found,
                                    uint32_t* counts) {
  const int shift = digit_shift(round), bits = digit_bits(round);
  for_elements(share, [&](const Element& element) {
    const uint32_t key = key_of(element.acc);
    const bool counted = element.inside && static_cast<uint64_t>(key) >> (shift + bits) ==
                                               static_cast<uint64_t>(found) >> (shift + bits);
    add_to_bin(counts, counted ? static_cast<int>(key >> shift & ((1u << bits) - 1)) : -1);
  });
}

// Step 4: the digit whose keys, counted from the top, reach the rank; none where there are fewer.
template <class Count>
__device__ inline void append_digit(const Count* counts, int round, uint32_t* key, uint64_t* rank,
                                    uint64_t* warp_sums, Found* found) {
  if (threadIdx.x == 0) *found = {0, *rank};
  __syncthreads();
  find_from_top(counts, kDigits, *rank, warp_sums, found);
  __syncthreads();
  if (threadIdx.x == 0) {
    *key |= found->digit << digit_shift(round);
    *rank = found->rank;
  }
}

// Step 5. Chosen magnitudes crowd into the k-th key's binade and the next: a thread adds those in
// registers. All but share and kth are shared memory, zeroed.
__device__ inline void tally_share(const Share& share, uint32_t kth, uint64_t* bins,
                                   uint32_t* greater, uint32_t* equal) {
  const int first = bin_of(kth);
  uint64_t sum[2] = {0, 0};
  uint32_t own_greater = 0, own_equal = 0;
  for_elements(share, [&](const Element& element) {
    const uint32_t key = key_of(element.acc);
    own_equal += element.inside && key == kth;
    if (key <= kth) return;
    ++own_greater;
    const int bin = bin_of(key);
    if (bin == first) {
      sum[0] += mantissa_of(key);
    } else if (bin == first + 1) {
      sum[1] += mantissa_of(key);
    } else {
      atomic_add(&bins[bin], mantissa_of(key));
    }
  });
  for (int step = kWarp / 2; step > 0; step /= 2) {
    for (int i = 0; i < 2; ++i) sum[i] += __shfl_xor_sync(kWholeWarp, sum[i], step);
  }
  if (threadIdx.x % kWarp == 0) {
    for (int i = 0; i < 2; ++i) {
      if (sum[i] != 0) atomic_add(&bins[first + i], sum[i]);
    }
  }
  if (own_greater != 0) atomicAdd(greater, own_greater);
  if (own_equal != 0) atomicAdd(equal, own_equal);
}

// Step 5, one thread: ties due become final, the mean is returned, count and mean go to info.
__device__ inline uint32_t settle_mean(const SelectItem& item, uint32_t kth, uint64_t greater,
                                       uint64_t* due, uint64_t* bins) {
  if (kth == 0) *due = 0;  // zeros are never selected
  const uint64_t chosen = greater + *due;
  bins[bin_of(kth)] += *due * mantissa_of(kth);
  const uint32_t mean = chosen != 0 ? exact_mean_bits(bins, chosen) : 0;
  item.info[kInfoCount] = static_cast<int64_t>(chosen);
  item.info[kInfoMean] = mean;
  // All ties, unless the emission finds one that is not due.
  if (item.next != nullptr)
    set_sent(item.next, kth, kth == 0 ? 0 : item.n, item.ternary ? int64_t{mean} : -1);
  return mean;
}

// What a share's emission needs of the whole.
struct Emission {
  uint32_t kth, mean;
  uint64_t due;             // ties
  uint64_t greater, equal;  // in the shares before
};

// Step 6, of one selected element.
__device__ inline void emit(const SelectItem& item, const Element& element, uint64_t place,
                            uint32_t mean) {
  const float sent =
      item.ternary ? float_of(mean | (bits_of(element.acc) & 0x80000000u)) : element.acc;
  if (item.wide) {
    static_cast<int64_t*>(item.index)[place] = element.i;
  } else {
    static_cast<int32_t*>(item.index)[place] = static_cast<int32_t>(element.i);
  }
  item.value[place] = sent;
  if (item.source.out != nullptr && item.next == nullptr)
    item.source.out[element.i] = element.acc - sent;
}

// Step 6. warp_counts is shared memory, an entry a warp: greater ones in the low half, equal ones
// in the high, as neither exceeds a turn.
__device__ inline void emit_share(const SelectItem& item, const Share& share, Emission whole,
                                  uint32_t* warp_counts) {
  for_rows(share, [&](const Element(&element)[kAhead]) {
    unsigned greaters[kAhead], equals[kAhead];
    uint32_t own = 0;
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t key = key_of(element[j].acc);
      greaters[j] = __ballot_sync(kWholeWarp, key > whole.kth);
      equals[j] = __ballot_sync(kWholeWarp, element[j].inside && key == whole.kth);
      own += static_cast<uint32_t>(__popc(greaters[j]) | __popc(equals[j]) << 16);
    }
    uint32_t turn;
    const uint32_t before = sum_of_warps_below(own, warp_counts, &turn);
    uint64_t g = whole.greater + (before & 0xffffu), e = whole.equal + (before >> 16);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint64_t ties = e + __popc(equals[j] & lanes_below());
      const uint32_t key = key_of(element[j].acc);
      const bool tie = element[j].inside && key == whole.kth;
      if (tie && ties == whole.due && key != 0 && item.next != nullptr)
        item.next[kSentCut] = element[j].i;
      if (key > whole.kth || (tie && ties < whole.due)) {
        const uint64_t place =
            g + __popc(greaters[j] & lanes_below()) + (ties < whole.due ? ties : whole.due);
        emit(item, element[j], place, whole.mean);
      }
      g += __popc(greaters[j]);
      e += __popc(equals[j]);
    }
    whole.greater += turn & 0xffffu;
    whole.equal += turn >> 16;
  });
}

// Step 4, one round.
__global__ void __launch_bounds__(kSelectThreads) select_round_kernel(SelectGrid grid, int round) {
  __shared__ uint32_t counts[kDigits];
  __shared__ uint64_t warp_sums[kWarps];
  __shared__ Found found;
  __shared__ uint32_t flag;
  const SelectPart part = part_of(grid, blockIdx.x);
  SelectWork& work = *part.work;
  if (work.refused || work.item.k == 0) return;
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) counts[i] = 0;
  __syncthreads();
  count_digits(share_of(work, part.block), round, work.key, counts);
  __syncthreads();
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) {
    if (counts[i] != 0) atomic_add(&work.digits[i], counts[i]);
  }
  if (!arrives_last(&work.arrived[kPhaseRound + round], work.plan.blocks, &flag)) return;
  append_digit(work.digits, round, &work.key, &work.rank, warp_sums, &found);
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) work.digits[i] = 0;
}

// Step 5. The last block makes each block's counts those of the blocks before it.
__global__ void __launch_bounds__(kSelectThreads) select_tally_kernel(SelectGrid grid) {
  __shared__ uint64_t bins[kBins];
  __shared__ uint64_t warp_sums[kWarps];
  __shared__ uint32_t greater, equal, flag;
  const SelectPart part = part_of(grid, blockIdx.x);
  SelectWork& work = *part.work;
  if (work.refused || work.item.k == 0) return;
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) bins[i] = 0;
  if (threadIdx.x == 0) greater = equal = 0;
  __syncthreads();
  tally_share(share_of(work, part.block), work.key, bins, &greater, &equal);
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) {
    if (bins[i] != 0) atomic_add(&work.bins[i], bins[i]);
  }
  if (threadIdx.x == 0) {
    work.counts[part.block].greater = greater;
    work.counts[part.block].equal = equal;
  }
  if (!arrives_last(&work.arrived[kPhaseTally], work.plan.blocks, &flag)) return;
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) bins[i] = work.bins[i];
  uint64_t all_greater = 0, all_equal = 0;  // of the blocks in earlier turns of the loop
  for (int64_t at = 0; at < work.plan.blocks; at += kSelectThreads) {
    const int64_t i = at + threadIdx.x;
    const bool inside = i < work.plan.blocks;
    uint64_t greaters, equals;
    const uint64_t greaters_before =
        block_exclusive_sum(inside ? work.counts[i].greater : 0, warp_sums, &greaters);
    const uint64_t equals_before =
        block_exclusive_sum(inside ? work.counts[i].equal : 0, warp_sums, &equals);
    if (inside) {
      work.counts[i].greater = all_greater + greaters_before;
      work.counts[i].equal = all_equal + equals_before;
    }
    all_greater += greaters;
    all_equal += equals;
  }
  if (threadIdx.x == 0) work.mean = settle_mean(work.item, work.key, all_greater, &work.rank, bins);
}

// Step 6.
__global__ void __launch_bounds__(kSelectThreads) select_emit_kernel(SelectGrid grid) {
  __shared__ uint32_t warp_counts[kWarps];
  const SelectPart part = part_of(grid, blockIdx.x);
  const SelectWork& work = *part.work;
  if (work.refused) {
    const int64_t begin = part.block * work.plan.step, end = begin + work.plan.step;
    return restore(work.item.source, begin + threadIdx.x, end < work.item.n ? end : work.item.n,
                   kSelectThreads);
  }
  if (work.item.k == 0) return;
  const BlockCounts before = work.counts[part.block];
  emit_share(work.item, share_of(work, part.block),
             {work.key, work.mean, work.rank, before.greater, before.equal}, warp_counts);
}

}  // namespace gcext
