// select on CUDA, a tiny item: all steps of select.cuh by one block. All elements are candidates;
// there is no scratch. A block has one SM's bandwidth, so this is for where launches cost more than
// passes.
#pragma once

#include "select_finish.cuh"

namespace gcext {

constexpr int kItemChunk = 42;  // kernel arguments may take 4 KiB

struct ItemChunk {
  SelectItem item[kItemChunk];
};

// Shared memory.
struct TinyMemory {
  uint32_t counts[kDigits];
  uint64_t bins[kBins];
  uint64_t warp_sums[kWideThreads / kWarp];
  uint32_t warp_counts[kWideThreads / kWarp];
  Found found;
  Search search;
  uint32_t greater, equal;
};

__device__ inline void clear_shared(int64_t k, TinyMemory& shared) {
  for (int i = threadIdx.x; i < kDigits; i += kWideThreads) shared.counts[i] = 0;
  clear_bins<kWideThreads>(shared.bins);
  if (threadIdx.x == 0) {
    shared.search = all_keys(k);
    shared.greater = shared.equal = 0;
  }
  __syncthreads();
}

// Steps 4 to 6. The pass before this one has counted the digits of the first round.
__device__ inline void finish_tiny(const SelectItem& item, const Share& share, TinyMemory& shared) {
  // Step 4.
  for (bool first = true; shared.search.shift >= 0; first = false) {
    if (!first) {
      for (int i = threadIdx.x; i < kDigits; i += kWideThreads) shared.counts[i] = 0;
      __syncthreads();
      count_digits(share, shared.search, shared.counts);
    }
    __syncthreads();
    narrow(shared.counts, &shared.search, shared.warp_sums, &shared.found);
    __syncthreads();
  }
  // Step 5.
  const uint32_t kth = shared.search.key;
  tally_share(share, kth, shared.bins, &shared.greater, &shared.equal);
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.search.mean = settle_mean(item, kth, shared.greater, &shared.search.rank, shared.bins);
  }
  __syncthreads();
  // Step 6.
  emit_share(item, share, {kth, shared.search.mean, shared.search.rank, 0, 0}, shared.warp_counts);
}

__global__ void __launch_bounds__(kWideThreads) select_tiny_kernel(ItemChunk chunk) {
  __shared__ TinyMemory shared;
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
      add_to_bin(shared.counts, i < item.n ? static_cast<int>(key_of(acc) >> kTopShift) : -1);
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
  finish_tiny(item, {source, 0, item.n, nullptr, nullptr, 0}, shared);
}

}  // namespace gcext
