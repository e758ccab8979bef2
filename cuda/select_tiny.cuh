// select on CUDA, an item that is one block's work: the steps of select.cuh in a single launch, a
// block an item. All elements are candidates; there is no scratch.
#pragma once

#include "select_finish.cuh"

namespace gcext {

constexpr int kItemChunk = 44;  // kernel arguments may take 4 KiB

struct ItemChunk {
  SelectItem item[kItemChunk];
};

struct TinyRoom {
  uint32_t counts[kDigits];
  uint64_t bins[kBins];
  uint64_t warp_sums[kWideThreads / kWarp];
  uint32_t warp_counts[kWideThreads / kWarp];
  Found found;
  uint64_t first_tensor, first_memory, first_sum, rank;
  uint32_t key, mean, greater, equal;
};

__global__ void __launch_bounds__(kWideThreads) select_tiny_kernel(ItemChunk chunk) {
  __shared__ TinyRoom room;
  const SelectItem item = chunk.item[blockIdx.x];
  const Source& source = item.source;
  for (int i = threadIdx.x; i < kDigits; i += kWideThreads) room.counts[i] = 0;
  for (int i = threadIdx.x; i < kBins; i += kWideThreads) room.bins[i] = 0;
  if (threadIdx.x == 0) {
    room.first_tensor = room.first_memory = room.first_sum = kNowhere;
    room.rank = static_cast<uint64_t>(item.k);
    room.key = room.greater = room.equal = 0;
  }
  __syncthreads();

  // Step 1.
  if (item.in_place) {
    for (int64_t i = threadIdx.x; i < item.n; i += kWideThreads) {
      if (key_of(source.tensor[i]) < kInfKey) continue;
      atomic_min(&room.first_tensor, static_cast<uint64_t>(i));
      break;  // a thread's indices rise
    }
    __syncthreads();
  }
  // Step 2, and the first round of step 4.
  const bool untouchable = room.first_tensor != kNowhere;
  __syncthreads();
  for (int64_t at = untouchable ? item.n : 0; at < item.n; at += kWideThreads) {
    const int64_t i = at + threadIdx.x;
    int digit = -1;
    if (i < item.n) {
      const float t = source.tensor[i], m = source.memory != nullptr ? source.memory[i] : 0.0f;
      float acc = source.a * t;
      if (source.memory != nullptr) acc += source.b * m;
      if (source.out != nullptr) source.out[i] = acc;
      digit = static_cast<int>(key_of(acc) >> digit_shift(0));
      if (key_of(acc) >= kInfKey) {
        const uint64_t where = static_cast<uint64_t>(i);
        atomic_min(&room.first_sum, where);
        if (!item.in_place && key_of(t) >= kInfKey) atomic_min(&room.first_tensor, where);
        if (!item.in_place && key_of(m) >= kInfKey) atomic_min(&room.first_memory, where);
      }
    }
    add_to_bin(room.counts, digit);
  }
  __syncthreads();
  // Step 3.
  const Verdict verdict =
      verdict_of(room.first_tensor, room.first_memory, room.first_sum, source.out != nullptr);
  if (threadIdx.x == 0) report(verdict, item.info);
  if (verdict.status != kSelectOk) return restore(item, 0, item.n);
  if (item.k == 0) return;
  // Step 4.
  const Share share = {source, 0, item.n, nullptr, nullptr, 0};
  for (int round = 0; round < kRounds; ++round) {
    if (round > 0) {
      for (int i = threadIdx.x; i < kDigits; i += kWideThreads) room.counts[i] = 0;
      __syncthreads();
      count_digits(share, round, room.key, room.counts);
      __syncthreads();
    }
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

}  // namespace gcext
