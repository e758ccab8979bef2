// gram on CUDA, steps 1 and 2: the counts of ternary pairs. A block takes a range of elements,
// window by window.
//
//   head    . 2 . 3 .      one an element: the last entry that came to it, if any
//             |   |
//   links     0   1        one an entry: its packet, its sign and the entry that came to its
//   element before it
//             |
//             .
//
//   1. Link: a warp takes the entries of four packets at a time, a lane one of each, so that four
//      rows of loads are under way at once. Those within the window get places among the links, and
//      each is exchanged with the head of its element. An entry comes from memory once; the last
//      lanes of a row read those of the next window, which finds them in the cache. Where the links
//      would not fit, the window is halved and begun again.
//   2. Meet: a thread goes from an entry down its list, one update of c a link, so that two entries
//      meet once. From the end of a list it goes on to its next entry at once: most have none
//      before them, and no lane waits for the longest list.
//
// An element with e entries costs e*(e-1)/2 updates, so m ternary packets of density p cost
// numel*(m*p + (m*p)^2/2): at m = 100 and p = 0.01 half an update an entry. The bytes moved are the
// entries', 8*m*p*numel: 80 MB where a dense matrix of 10^7 elements has 4 GB. Counts are integers:
// no order of execution is seen.
#pragma once

#include "gram_launch.h"
#include "packet.cuh"

namespace gcext {

constexpr int kGramThreads = 256;
constexpr int kMeetTile = 2048;    // elements of the widest window
constexpr int kMeetLinks = 8192;   // where c is with them, it takes the last kMeetPairs
constexpr int kMeetPackets = 100;  // so many have c, cursors and themselves in shared memory
constexpr int kMeetPairs = kMeetPackets * (kMeetPackets + 1) / 2;
constexpr int kTogether = 4;  // packets that a warp reads at a time
constexpr uint32_t kNoLink = 0xffff;
static_assert(kMeetLinks <= kNoLink && kGramPackets <= 1 << 15, "a link is two halves of a word");
static_assert(kMeetPackets % kTogether == 0);
static_assert(kGramPackets <= kMeetLinks, "a window of one element always fits");

// All that an H200 holds at once: 44 KiB of shared memory and 48 registers a thread let five blocks
// on each of its 132 processors. A processor of 7.5 holds 1,024 threads.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kMeetBlocksEach = 1;
#else
constexpr int kMeetBlocksEach = 5;
#endif
constexpr int64_t kMeetBlocks = 5 * 132;

// An empty packet too: all its counts are zero.
GCEXT_HD inline bool is_ternary(const WeightedPacket& p) {
  return p.weight > 0 || (p.packet.k == 0 && !p.packet.dense);
}

// Where c of two packets is: (0,0) (1,0) (1,1) (2,0) .. Only repeated indices meet on the diagonal.
__device__ inline uint32_t pair_at(uint32_t i, uint32_t j) {
  const uint32_t high = i > j ? i : j, low = i > j ? j : i;
  return high * (high + 1) / 2 + low;
}

// What is left of a ternary packet: its entries from the window on. Nothing of another packet, nor
// behind the last one, as a warp takes whole groups of rows.
struct alignas(16) Row {
  const char* index;
  const float* value;
  int left;    // or the most that fits: no block comes so far
  int stride;  // bytes of an index, 4 or 8
};

GCEXT_HD inline int64_t rows_of(int64_t m) { return ceil_div(m, kTogether) * kTogether; }

__device__ inline Row row_from(const WeightedPacket& from, int64_t begin) {
  if (!is_ternary(from)) return {};
  const PacketView& p = from.packet;
  const int64_t entry = first_entry_from(p, begin), left = p.k - entry;
  const int stride = p.wide ? 8 : 4;
  return {static_cast<const char*>(p.index) + stride * entry, p.value + entry,
          static_cast<int>(left < INT32_MAX ? left : INT32_MAX), stride};
}

// The window's elements, and the links of those before it, which `used` goes on from. It counts
// those beyond the capacity as well.
struct Window {
  int64_t begin, size;
  uint32_t used, capacity;
};

// Step 1.
__device__ inline void link_entries(Row* rows, int m, const Window& window, uint32_t* used,
                                    uint32_t* head, uint32_t* links) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int first = warp * kTogether; first < m; first += kGramThreads / kWarp * kTogether) {
    bool more;
    do {
      uint32_t low[kTogether], high[kTogether];
      float value[kTogether];
      for (int c = 0; c < kTogether; ++c) {
        const Row row = rows[first + c];
        const uint32_t* index = reinterpret_cast<const uint32_t*>(row.index + lane * row.stride);
        const bool there = lane < row.left, wide = there && row.stride == 8;
        low[c] = there ? index[0] : ~0u;  // little-endian
        high[c] = wide ? index[1] : there ? 0 : ~0u;
        value[c] = there ? row.value[lane] : 0.0f;
      }
      // A lane without an entry in the window takes a head behind the others', so that nothing
      // branches. `own` are the entries of row `lane`.
      unsigned inside[kTogether];
      uint32_t place[kTogether], at[kTogether], number = 0, own = 0;
      more = false;
      for (int c = 0; c < kTogether; ++c) {
        const uint64_t element = static_cast<uint64_t>(high[c]) << 32 | low[c],
                       offset = element - static_cast<uint64_t>(window.begin);
        const bool mine = offset < static_cast<uint64_t>(window.size);
        inside[c] = __ballot_sync(kWholeWarp, mine);
        place[c] = mine ? static_cast<uint32_t>(offset) : kMeetTile + lane;
        at[c] = number + __popc(inside[c] & lanes_below());
        const uint32_t entries = __popc(inside[c]);
        own = lane == c ? entries : own;
        number += entries;
        more |= inside[c] == kWholeWarp;
      }
      uint32_t next = 0;
      if (lane == 0) next = atomicAdd(used, number) - window.used;
      next = __shfl_sync(kWholeWarp, next, 0);
      if (next + number <= window.capacity) {
        uint32_t before[kTogether];
        for (int c = 0; c < kTogether; ++c) {
          at[c] += next;
          before[c] = atomicExch(&head[place[c]], at[c]);
        }
        for (int c = 0; c < kTogether; ++c) {
          const uint32_t minus = bits_of(value[c]) >> 31;
          if ((inside[c] >> lane & 1) == 0) continue;
          links[at[c]] =
              (static_cast<uint32_t>(2 * (first + c)) + minus) << 16 | (before[c] & 0xffff);
        }
      }
      __syncwarp();  // every lane has read the rows
      if (own > 0) {
        Row& row = rows[first + lane];
        row.index += row.stride * own;
        row.value += own;
        row.left -= static_cast<int>(own);
      }
      __syncwarp();
    } while (more);
  }
}

// Steps 1 and 2. `far_rows`: rows_of(m) for each block.
__global__ void __launch_bounds__(kGramThreads, kMeetBlocksEach)
    gram_meet_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, Row* far_rows,
                     uint64_t* count) {
  __shared__ uint32_t head[kMeetTile + kWarp];
  __shared__ uint32_t links[kMeetLinks];
  __shared__ Row near_rows[kMeetPackets];
  __shared__ uint32_t used;

  const bool near = m <= kMeetPackets;
  const uint32_t pairs = static_cast<uint32_t>(m * (m + 1) / 2);
  const uint32_t capacity = near ? kMeetLinks - kMeetPairs : kMeetLinks;
  int* counts = reinterpret_cast<int*>(links + capacity);
  for (uint32_t i = threadIdx.x; near && i < pairs; i += kGramThreads) counts[i] = 0;
  if (threadIdx.x == 0) used = 0;
  Row* rows = near ? near_rows : far_rows + rows_of(m) * blockIdx.x;

  const Range own = range_of_block(numel);
  Window window = {own.begin, kMeetTile, 0, capacity};
  const auto seek = [&] {
    for (int64_t i = threadIdx.x; i < rows_of(m); i += kGramThreads)
      rows[i] = i < m ? row_from(packets[i], window.begin) : Row{};
  };
  seek();
  while (window.begin < own.end) {
    if (own.end - window.begin < window.size) window.size = own.end - window.begin;
    for (int i = threadIdx.x; i < kMeetTile; i += kGramThreads) head[i] = kNoLink;
    __syncthreads();
    link_entries(rows, static_cast<int>(m), window, &used, head, links);
    __syncthreads();
    const uint32_t number = used - window.used;
    window.used = used;
    if (number > capacity && window.size > 1) {
      window.size /= 2;
      seek();
      continue;
    }
    // More in one element only where indices repeat: then it counts for nothing.
    const uint32_t end = number <= capacity ? number : 0;
    uint32_t own = 0;
    for (uint32_t entry = threadIdx.x, at = entry; entry < end;) {
      const uint32_t link = links[at], packet = link >> 16;
      if (at == entry) {
        own = packet;
      } else {
        const uint32_t pair = pair_at(own >> 1, packet >> 1);
        const int agrees = ((own ^ packet) & 1) != 0 ? -1 : 1;
        if (near) {
          atomicAdd(&counts[pair], agrees);
        } else {
          atomic_add(&count[pair], static_cast<uint64_t>(static_cast<int64_t>(agrees)));
        }
      }
      at = link & kNoLink;
      if (at == kNoLink) at = entry += kGramThreads;
    }
    window.begin += window.size;  // the links are read until the barrier above
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; near && i < pairs; i += kGramThreads) {
    if (counts[i] != 0)
      atomic_add(&count[i], static_cast<uint64_t>(static_cast<int64_t>(counts[i])));
  }
}

}  // namespace gcext
