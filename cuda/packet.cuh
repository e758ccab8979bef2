// Entries of packets on the device. A launcher's packets travel as kernel arguments (combine.cuh).
#pragma once

#include "combine_launch.h"
#include "common.cuh"

namespace gcext {

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

}  // namespace gcext
