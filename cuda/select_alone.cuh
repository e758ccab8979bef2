// select on CUDA, what one block does alone. A block has one SM's bandwidth, so this is for where
// launches cost more than passes:
//
//   tiny     all steps of select.cuh in a single launch, a block an item. All elements are
//            candidates; there is no scratch.
//   medium   steps 4 to 6 in a single launch, a block an item: the candidates of the stream's
//            blocks are few, and are first gathered into one piece.
#pragma once

#include "select_finish.cuh"

namespace gcext {

constexpr int kItemChunk = 42;  // kernel arguments may take 4 KiB

struct ItemChunk {
  SelectItem item[kItemChunk];
};

// Shared memory.
struct AloneMemory {
  uint32_t counts[kDigits];
  uint64_t bins[kBins];
  uint64_t warp_sums[kWideThreads / kWarp];
  uint32_t warp_counts[kWideThreads / kWarp];
  Found found;
  uint64_t rank;
  uint32_t key, mean, greater, equal;
};

__device__ inline void clear_shared(int64_t k, AloneMemory& shared) {
  for (int i = threadIdx.x; i < kDigits; i += kWideThreads) shared.counts[i] = 0;
  for (int i = threadIdx.x; i < kBins; i += kWideThreads) shared.bins[i] = 0;
  if (threadIdx.x == 0) {
    shared.rank = static_cast<uint64_t>(k);
    shared.key = shared.greater = shared.equal = 0;
  }
  __syncthreads();
}

// Steps 4 to 6 for a share that is the whole item. The pass before this one has counted
// the digits of the first round.
__device__ inline void finish_alone(const SelectItem& item, const Share& share,
                                    AloneMemory& shared) {
  // Step 4.
  for (int round = 0; round < kRounds; ++round) {
    if (round > 0) {
      for (int i = threadIdx.x; i < kDigits; i += kWideThreads) shared.counts[i] = 0;
      __syncthreads();
      count_digits(share, round, shared.key, shared.counts);
    }
    __syncthreads();
    append_digit(shared.counts, round, &shared.key, &shared.rank, shared.warp_sums, &shared.found);
    __syncthreads();
  }
  // Step 5.
  tally_share(share, shared.key, shared.bins, &shared.greater, &shared.equal);
  __syncthreads();
  if (threadIdx.x == 0)
    shared.mean = settle_mean(item, shared.key, shared.greater, &shared.rank, shared.bins);
  __syncthreads();
  // Step 6.
  emit_share(item, share, {shared.key, shared.mean, shared.rank, 0, 0}, shared.warp_counts);
}

__global__ void __launch_bounds__(kWideThreads) select_tiny_kernel(ItemChunk chunk) {
  __shared__ AloneMemory shared;
  __shared__ FirstNonFinite first;
  const SelectItem item = chunk.item[blockIdx.x];
  const Source& source = item.source;
  if (threadIdx.x == 0) first = {kNowhere, kNowhere, kNowhere};
  clear_shared(item.k, shared);

  // Step 1.
  if (item.in_place) {
    uint64_t own = kNowhere;
    for (int64_t i = threadIdx.x; i < item.n; i += kWideThreads) {
      const uint64_t where = static_cast<uint64_t>(i);
      if (key_of(source.tensor[i]) >= kInfKey && where < own) own = where;
    }
    if (own != kNowhere) atomic_min(&first.tensor, own);
    __syncthreads();
  }
  // Step 2, and the first round of step 4.
  const bool untouchable = first.tensor != kNowhere;
  const Held held = held_of(source);
  __syncthreads();
  for (int64_t at = untouchable ? item.n : 0; at < item.n; at += kAhead * kWideThreads) {
    float tensor[kAhead], memory[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = at + j * kWideThreads + threadIdx.x;
      tensor[j] = i < item.n ? source.tensor[i] : 0.0f;
      memory[j] = i < item.n && source.memory != nullptr ? source.memory[i] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = at + j * kWideThreads + threadIdx.x;
      float acc = source.a * tensor[j];
      if (source.memory != nullptr) acc += source.b * held.rest(memory[j], i);
      if (i < item.n && source.out != nullptr) source.out[i] = acc;
      if (i < item.n && key_of(acc) >= kInfKey) {
        const uint64_t where = static_cast<uint64_t>(i);
        atomic_min(&first.sum, where);
        if (!item.in_place && key_of(tensor[j]) >= kInfKey) atomic_min(&first.tensor, where);
        if (!item.in_place && key_of(memory[j]) >= kInfKey) atomic_min(&first.memory, where);
      }
      add_to_bin(shared.counts, i < item.n ? static_cast<int>(key_of(acc) >> digit_shift(0)) : -1);
    }
  }
  __syncthreads();
  // Step 3.
  if (threadIdx.x == 0) {
    report(first, source.out != nullptr, item.info);
    begin_next(source, item.next, first.sum != kNowhere || untouchable);
  }
  if (first.sum != kNowhere || untouchable)
    return restore(source, threadIdx.x, item.n, kWideThreads);
  if (item.k == 0) return;
  finish_alone(item, {source, 0, item.n, nullptr, nullptr, 0}, shared);
}

// The candidates of all blocks in one piece, in order of index, placed from the item's beginning
// on; counts the digits of the first round, as all are at hand. `first` is shared memory, an entry
// a thread.
//
// 1. Thread b has block b: the candidates before its own are a prefix sum.
// 2. A candidate's block is the last that starts at or before it: a binary search, and as the lanes
//    of a warp look for neighbours, their loads are mostly the same.
__device__ inline Share gather(const SelectWork& work, uint32_t* first, AloneMemory& shared) {
  const int64_t own = threadIdx.x < work.plan.blocks ? work.counts[threadIdx.x].candidates : 0;
  uint64_t total;
  first[threadIdx.x] = static_cast<uint32_t>(block_exclusive_sum(own, shared.warp_sums, &total));
  __syncthreads();
  const Candidate* const pool = work.pool;
  Candidate* const gathered = work.gathered;
  const uint32_t* const slab_of = work.slab_of;
  const int shift = work.plan.slab_shift;
  const uint32_t step = static_cast<uint32_t>(work.plan.step), size = static_cast<uint32_t>(total);
  for (uint32_t at = threadIdx.x; at - threadIdx.x < size; at += kAhead * kWideThreads) {
    uint32_t begin[kAhead], within[kAhead], slab[kAhead];
    Candidate candidate[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t e = at + j * kWideThreads < size ? at + j * kWideThreads : size - 1;
      uint32_t block = 0;
#pragma unroll
      for (uint32_t half = kWideThreads / 2; half > 0; half /= 2) {
        if (first[block + half] <= e) block += half;
      }
      begin[j] = block * step;
      within[j] = e - first[block];
      slab[j] = slab_of[block * kSlabs + (within[j] >> shift)];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      candidate[j] = pool[(int64_t{slab[j]} << shift) + (within[j] & ((1u << shift) - 1))];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const uint32_t e = at + j * kWideThreads;
      if (e < size) gathered[e] = {begin[j] + candidate[j].place, candidate[j].bits};
      const uint32_t key = key_of(float_of(candidate[j].bits));
      add_to_bin(shared.counts, e < size ? static_cast<int>(key >> digit_shift(0)) : -1);
    }
  }
  return {work.item.source, 0, static_cast<int64_t>(size), gathered, nullptr, 0};
}

// Steps 4 to 6 of the medium items, a block each.
__global__ void __launch_bounds__(kWideThreads) select_medium_kernel(const SelectWork* works) {
  __shared__ AloneMemory shared;
  __shared__ uint32_t first[kWideThreads];
  const SelectWork& work = works[blockIdx.x];
  const SelectItem item = work.item;
  if (work.refused) return restore(item.source, threadIdx.x, item.n, kWideThreads);
  if (item.k == 0) return;
  clear_shared(item.k, shared);
  Share share = {item.source, 0, item.n, nullptr, nullptr, 0};
  if (work.all) {
    count_digits(share, 0, 0, shared.counts);
  } else {
    share = gather(work, first, shared);
  }
  finish_alone(item, share, shared);
}

}  // namespace gcext
