// Entries of packets on the device. A launcher's packets travel as kernel arguments (launch_take).
#pragma once

#include "combine_launch.h"
#include "common.cuh"

namespace gcext {

constexpr int kEntryRows = 4;  // of 32 entries that a warp loads in a go

__device__ inline int64_t index_at(const PacketView& p, int64_t entry) {
  return p.wide ? static_cast<const int64_t*>(p.index)[entry]
                : static_cast<const int32_t*>(p.index)[entry];
}

// The first entry of [low, high) whose index is not below `bound`, or high.
__device__ inline int64_t first_entry_from(const PacketView& p, int64_t bound, int64_t low,
                                           int64_t high) {
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (index_at(p, middle) < bound) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ inline int64_t first_entry_from(const PacketView& p, int64_t bound) {
  return first_entry_from(p, bound, 0, p.k);
}

// Entries of a packet that a warp has loaded, a row of 32 after the other.
struct EntryRows {
  int64_t from;           // the first one
  int place[kEntryRows];  // in the tile; its size, or more: of no entry, or one beyond it
  float value[kEntryRows];

  __device__ void load(const PacketView& p, int64_t first, int rows, int64_t begin, int size) {
    from = first;
    int64_t at[kEntryRows];
#pragma unroll
    for (int r = 0; r < kEntryRows; ++r) {
      const int64_t e = from + r * kWarp + threadIdx.x % kWarp;
      at[r] = r < rows && e < p.k ? index_at(p, e) - begin : size;
    }
#pragma unroll
    for (int r = 0; r < kEntryRows; ++r) {
      place[r] = at[r] < size ? static_cast<int>(at[r]) : size;
      if (at[r] < 0) place[r] = -1;  // out of its place, which a sound packet's is not
      value[r] =
          place[r] >= 0 && place[r] < size ? p.value[from + r * kWarp + threadIdx.x % kWarp] : 0.0f;
    }
  }
  // body(place, value) for those inside; how many have no index beyond the tile. Every lane must
  // call it.
  template <class Body>
  __device__ int each(int size, const Body& body) const {
    int count = 0;
#pragma unroll
    for (int r = 0; r < kEntryRows; ++r) {
      const bool inside = place[r] < size;
      if (inside && place[r] >= 0) body(place[r], value[r]);
      count += __popc(__ballot_sync(kWholeWarp, inside));
    }
    return count;
  }
};

// Rows that most tiles need, were the entries spread evenly.
__device__ inline int rows_of(const PacketView& p, int64_t tile, int64_t numel) {
  const float expected =
      static_cast<float>(p.k) * static_cast<float>(tile) / static_cast<float>(numel);
  const int rows = 1 + static_cast<int>(expected * 1.2f / kWarp);
  return rows < kEntryRows ? rows : kEntryRows;
}

// body(place, value) for a packet's entries in the tile [begin, begin + size), from entry `from`
// on, `rows` rows of them at a time; the first entry beyond it. Every lane of the warp must call
// it.
template <class Body>
__device__ int64_t walk_tile(const PacketView& p, int64_t from, int rows, int64_t begin, int size,
                             const Body& body) {
  EntryRows entries;
  int count;
  do {
    entries.load(p, from, rows, begin, size);
    count = entries.each(size, body);
    from += count;
  } while (count == rows * kWarp);
  return from;
}

}  // namespace gcext
