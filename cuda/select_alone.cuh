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

constexpr int kItemChunk = 44;  // kernel arguments may take 4 KiB

struct ItemChunk {
  SelectItem item[kItemChunk];
};

// Shared memory.
struct AloneRoom {
  uint32_t counts[kDigits];
  uint64_t bins[kBins];
  uint64_t warp_sums[kWideThreads / kWarp];
  uint32_t warp_counts[kWideThreads / kWarp];
  Found found;
  uint64_t rank;
  uint32_t key, mean, greater, equal;
};

__device__ inline void open_room(int64_t k, AloneRoom& room) {
  for (int i = threadIdx.x; i < kDigits; i += kWideThreads) room.counts[i] = 0;
  for (int i = threadIdx.x; i < kBins; i += kWideThreads) room.bins[i] = 0;
  if (threadIdx.x == 0) {
    room.rank = static_cast<uint64_t>(k);
    room.key = room.greater = room.equal = 0;
  }
  __syncthreads();
}

// Steps 4 to 6 for a share that is the whole item. Whoever went through it last has counted the
// digits of the first round.
__device__ inline void finish_alone(const SelectItem& item, const Share& share, AloneRoom& room) {
  // Step 4.
  for (int round = 0; round < kRounds; ++round) {
    if (round > 0) {
      for (int i = threadIdx.x; i < kDigits; i += kWideThreads) room.counts[i] = 0;
      __syncthreads();
      count_digits(share, round, room.key, room.counts);
    }
    __syncthreads();
    append_digit(room.counts, round, &room.key, &room.rank, room.warp_sums, &room.found);
    __syncthreads();
  }
  // Step 5.
  tally_share(share, room.key, room.bins, &room.greater, &room.equal);
  __syncthreads();
  if (threadIdx.x == 0)
    room.mean = settle_mean(room.key, room.greater, &room.rank, room.bins, item.info);
  __syncthreads();
  // Step 6.
  emit_share(item, share, {room.key, room.mean, room.rank, 0, 0}, room.warp_counts);
}

__global__ void __launch_bounds__(kWideThreads) select_tiny_kernel(ItemChunk chunk) {
  __shared__ AloneRoom room;
  __shared__ uint64_t first_tensor, first_memory, first_sum;
  const SelectItem item = chunk.item[blockIdx.x];
  const Source& source = item.source;
  if (threadIdx.x == 0) first_tensor = first_memory = first_sum = kNowhere;
  open_room(item.k, room);

  // Step 1.
  if (item.in_place) {
    uint64_t first = kNowhere;
    for (int64_t i = threadIdx.x; i < item.n; i += kWideThreads) {
      const uint64_t where = static_cast<uint64_t>(i);
      if (key_of(source.tensor[i]) >= kInfKey && where < first) first = where;
    }
    if (first != kNowhere) atomic_min(&first_tensor, first);
    __syncthreads();
  }
  // Step 2, and the first round of step 4.
  const bool untouchable = first_tensor != kNowhere;
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
      if (source.memory != nullptr) acc += source.b * memory[j];
      if (i < item.n && source.out != nullptr) source.out[i] = acc;
      if (i < item.n && key_of(acc) >= kInfKey) {
        const uint64_t where = static_cast<uint64_t>(i);
        atomic_min(&first_sum, where);
        if (!item.in_place && key_of(tensor[j]) >= kInfKey) atomic_min(&first_tensor, where);
        if (!item.in_place && key_of(memory[j]) >= kInfKey) atomic_min(&first_memory, where);
      }
      add_to_bin(room.counts, i < item.n ? static_cast<int>(key_of(acc) >> digit_shift(0)) : -1);
    }
  }
  __syncthreads();
  // Step 3.
  const Verdict verdict = verdict_of(first_tensor, first_memory, first_sum, source.out != nullptr);
  if (threadIdx.x == 0) report(verdict, item.info);
  if (verdict.status != kSelectOk) return restore(item, 0, item.n);
  if (item.k == 0) return;
  finish_alone(item, {source, 0, item.n, nullptr, nullptr, 0}, room);
}

// The candidates of all blocks in one piece, in order of index, placed from the item's beginning
// on; counts the digits of the first round, as all are at hand. `first` is shared memory, an entry
// a thread.
//
// 1. Thread b has block b: the candidates before its own are a prefix sum.
// 2. A candidate's block is the last that starts at or before it: a binary search, and as the lanes
//    of a warp look for neighbours, their loads are mostly the same.
__device__ inline Share gather(const SelectWork& work, uint32_t* first, AloneRoom& room) {
  const int64_t own = threadIdx.x < work.plan.blocks ? work.counts[threadIdx.x].candidates : 0;
  uint64_t total;
  first[threadIdx.x] = static_cast<uint32_t>(block_exclusive_sum(own, room.warp_sums, &total));
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
      const uint32_t key = key_of(bits_float(candidate[j].bits));
      add_to_bin(room.counts, e < size ? static_cast<int>(key >> digit_shift(0)) : -1);
    }
  }
  return {work.item.source, 0, static_cast<int64_t>(size), gathered, nullptr, 0};
}

// Steps 4 to 6 of the medium items, a block each.
__global__ void __launch_bounds__(kWideThreads) select_medium_kernel(const SelectWork* works) {
  __shared__ AloneRoom room;
  __shared__ uint32_t first[kWideThreads];
  const SelectWork& work = works[blockIdx.x];
  const SelectItem item = work.item;
  if (work.refused) return restore(item, 0, item.n);
  if (item.k == 0) return;
  open_room(item.k, room);
  Share share = {item.source, 0, item.n, nullptr, nullptr, 0};
  if (work.all) {
    count_digits(share, 0, 0, room.counts);
  } else {
    share = gather(work, first, room);
  }
  finish_alone(item, share, room);
}

}  // namespace gcext
