// select on CUDA, steps 4 to 6 of select.cuh: the search, the tally, the emission. For each of them
// every block of the stream has a part, its share: the candidates of its range, or, where those are
// useless, the range itself.
#pragma once

#include "near_bins.cuh"
#include "select.cuh"

namespace gcext {

// Step 4: counts the share's keys of the interval. counts is shared memory, zeroed.
__device__ inline void count_digits(const Share& share, const Search& search, uint32_t* counts) {
  for_elements(share, [&](const Element& element) {
    const uint32_t key = key_of(element.acc), above = key - search.key;
    const bool counted =
        element.inside && key >= search.key && static_cast<uint64_t>(above) >> search.width == 0;
    const uint32_t digit = above >> search.shift;
    add_to_bin(counts, !counted ? -1 : digit < kDigits ? static_cast<int>(digit) : kDigits - 1);
  });
}

// Step 4: goes on to the digit whose keys, counted from the top, reach the rank, or to the lowest
// where there are fewer. Every thread must call it; the search is memory that all of them see.
template <class Count>
__device__ inline void narrow(const Count* counts, Search* search, uint64_t* warp_sums,
                              Found* found) {
  if (threadIdx.x == 0) *found = {0, search->rank};
  __syncthreads();
  find_from_top(counts, kDigits, search->rank, warp_sums, found);
  __syncthreads();
  if (threadIdx.x != 0) return;
  search->key += found->digit << search->shift;
  search->rank = found->rank;
  if (search->shift != kTopShift && search->width > 31 && found->digit == kDigits - 1) {
    search->shift = kTopShift;  // anywhere above
  } else {
    search->width = search->shift;
    search->shift = search->width == 0            ? -1
                    : search->width <= kDigitBits ? 0
                                                  : search->width - kDigitBits;
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
  for (int i = 0; i < 2; ++i) sum[i] = sum_of_lanes(sum[i]);
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
  const float sent = item.ternary ? with_sign_of(mean, element.acc) : element.acc;
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
      __syncwarp();  // a row's pairs are stored together
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

// What the phases of a part need in shared memory.
struct FinishMemory {
  SharedCopy<SelectHead> head;
  SharedCopy<Search> search;
  SharedCopy<BlockCounts> own;  // of the part, as they were before the phase
  uint32_t slab_of[kSlabs];
  uint64_t warp_sums[kWarps];
  Found found;
  uint32_t greater, equal, flag;
  uint32_t warp_counts[kWarps];
  uint32_t counts[kDigits];
  uint64_t bins[kBins];
};

// The part's share. Every thread must call it.
__device__ inline Share share_of(int64_t block, FinishMemory& shared) {
  const SelectHead& head = *shared.head;
  Share share = {head.item.source, block * head.plan.step, head.plan.step, nullptr, nullptr, 0};
  if (head.item.n - share.begin < share.size) share.size = head.item.n - share.begin;
  if (head.all) return share;
  share.size = static_cast<int64_t>((*shared.own).candidates);
  share.pool = head.pool;
  share.slab_of = shared.slab_of;
  share.slab_shift = head.plan.slab_shift;
  const int64_t slabs = ceil_div(share.size, int64_t{1} << share.slab_shift);
  if (static_cast<int64_t>(threadIdx.x) < slabs)
    shared.slab_of[threadIdx.x] = head.slab_of[block * kSlabs + threadIdx.x];
  __syncthreads();
  return share;
}

// The block that ends a phase says so.
__device__ inline void end_phase(SelectWork& work, uint32_t done) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicExch(&work.done, done);
}

// Step 4, one round.
__device__ inline void finish_round(const Part& part, int round, FinishMemory& shared) {
  SelectWork& work = *part.work;
  const SelectHead& head = *shared.head;
  Search& search = *shared.search;
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) shared.counts[i] = 0;
  __syncthreads();
  count_digits(share_of(part.block, shared), search, shared.counts);
  __syncthreads();
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) {
    if (shared.counts[i] != 0) atomic_add(&work.digits[i], shared.counts[i]);
  }
  if (!arrives_last(&work.arrived[kPhaseRound + round], head.plan.blocks, &shared.flag)) return;
  narrow(work.digits, &search, shared.warp_sums, &shared.found);
  for (int i = threadIdx.x; i < kDigits; i += kSelectThreads) work.digits[i] = 0;
  if (threadIdx.x == 0) work.search = search;
  __syncthreads();
  end_phase(work, search.shift < 0 ? kPhaseTally : kPhaseRound + round + 1);
}

// Step 5. The last block makes each block's counts those of the blocks before it.
__device__ inline void finish_tally(const Part& part, FinishMemory& shared) {
  SelectWork& work = *part.work;
  const SelectHead& head = *shared.head;
  Search& search = *shared.search;
  clear_bins<kSelectThreads>(shared.bins);
  if (threadIdx.x == 0) shared.greater = shared.equal = 0;
  __syncthreads();
  tally_share(share_of(part.block, shared), search.key, shared.bins, &shared.greater,
              &shared.equal);
  __syncthreads();
  add_bins(shared.bins, work.bins);
  if (threadIdx.x == 0) {
    head.counts[part.block].greater = shared.greater;
    head.counts[part.block].equal = shared.equal;
  }
  if (!arrives_last(&work.arrived[kPhaseTally], head.plan.blocks, &shared.flag)) return;
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) shared.bins[i] = work.bins[i];
  uint64_t all_greater = 0, all_equal = 0;  // of the blocks in earlier turns of the loop
  for (int64_t at = 0; at < head.plan.blocks; at += kSelectThreads) {
    const int64_t i = at + threadIdx.x;
    const bool inside = i < head.plan.blocks;
    uint64_t greaters, equals;
    const uint64_t greaters_before =
        block_exclusive_sum(inside ? head.counts[i].greater : 0, shared.warp_sums, &greaters);
    const uint64_t equals_before =
        block_exclusive_sum(inside ? head.counts[i].equal : 0, shared.warp_sums, &equals);
    if (inside) {
      head.counts[i].greater = all_greater + greaters_before;
      head.counts[i].equal = all_equal + equals_before;
    }
    all_greater += greaters;
    all_equal += equals;
  }
  if (threadIdx.x == 0) {
    work.search.mean = settle_mean(head.item, search.key, all_greater, &search.rank, shared.bins);
    work.search.rank = search.rank;
  }
  end_phase(work, kPhaseEmit);
}

// Step 6.
__device__ inline void finish_emit(const Part& part, FinishMemory& shared) {
  const SelectHead& head = *shared.head;
  const Search& search = *shared.search;
  const BlockCounts& before = *shared.own;
  emit_share(head.item, share_of(part.block, shared),
             {search.key, search.mean, search.rank, before.greater, before.equal},
             shared.warp_counts);
}

// Steps 4 to 6, or of items that are sums alone the restoring.
__global__ void __launch_bounds__(kSelectThreads, 3)
    select_finish_kernel(SelectGrid grid, int first_phase) {
  __shared__ FinishMemory shared;
  __shared__ Part part;
  __shared__ int phase;
  const SelectWork* held = nullptr;  // whose head is in shared memory
  for (;;) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const int64_t ticket = atomicAdd(grid.ticket, 1u);
      phase = first_phase + static_cast<int>(ticket / grid.blocks);
      if (phase < kPhases) part = part_of(grid, ticket % grid.blocks);
    }
    __syncthreads();
    if (phase >= kPhases) return;
    SelectWork& work = *part.work;
    if (&work != held) shared.head.take(work.head);
    held = &work;
    const SelectHead& head = *shared.head;
    if (head.refused) {
      if (phase != kPhaseEmit) continue;
      const int64_t begin = part.block * head.plan.step, end = begin + head.plan.step;
      restore(head.item.source, begin + threadIdx.x, end < head.item.n ? end : head.item.n,
              kSelectThreads);
      continue;
    }
    if (head.item.k == 0) continue;
    // Of rounds that were not needed nothing is read: what they would read may be written already.
    const uint32_t now = static_cast<uint32_t>(phase);
    if (wait_for(&work.done, now, &shared.flag) != now) continue;
    shared.search.take(work.search);
    shared.own.take(head.counts[part.block]);
    if (phase < kPhaseTally) {
      finish_round(part, phase - kPhaseRound, shared);
    } else if (phase == kPhaseTally) {
      finish_tally(part, shared);
    } else {
      finish_emit(part, shared);
    }
  }
}

}  // namespace gcext
