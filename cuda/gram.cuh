// gram on CUDA: the kernels. csrc/gram.h has the contract, gram.cu the sequence.
//
// Counts of ternary pairs, elements in tiles, a block the tiles of a contiguous range:
//
//   1. Tally: the packets' entries at each element of a window of the tile, in shared memory. Where
//      the lists would not fit, the window is halved.
//   2. A scan of the tally gives each element a list of its own; every entry joins its element's.
//   3. Every entry that is not alone meets its list: one update of c for each packet below its own.
//      c is in shared memory where m <= 100, else in the cache of the device.
//
// An element with e entries costs e^2 steps, so m ternary packets of density p cost
// numel*(m*p + (m*p)^2): at m = 100 and p = 0.01 two steps an entry. The bytes moved are the
// entries', 8*m*p*numel, once from memory and twice from the cache: 80 MB where a dense matrix has
// 4 GB. Counts are integers: no order of execution is seen.
//
// Sums of other pairs, tile by tile as csrc/gram.h orders them:
//
//   4. Eight threads a pair and tile, one for each lane of the sum, each in order of its elements:
//      two dense packets side by side, otherwise the entries of the shorter one, looked up in the
//      other. Lanes are added by shuffles, in the order of csrc/gram.h.
//   5. A thread a pair adds tiles to their chunk and chunks to the dot, in order.
//
//   6. Finish: scales times counts; the mirrored half.
#pragma once

#include "gram_launch.h"
#include "packet.cuh"
#include "planes.cuh"

namespace gcext {

constexpr int kGramThreads = 256;
constexpr int kMeetTile = 2048;
constexpr int kMeetRoom = 8192;   // entries on the lists of a window
constexpr int kMeetPairs = 4950;  // those of 100 packets; with tile and lists 44 KiB
static_assert(kGramPackets <= kMeetRoom, "a window of one element always fits");
constexpr int kLanes = 8;

// Running sums of a pair, between the launches.
struct PairSum {
  double dot, chunk;
};

// An empty packet too: all its counts are zero.
GCEXT_HD inline bool is_ternary(const WeightedPacket& p) {
  return p.weight > 0 || (p.packet.k == 0 && !p.packet.dense);
}

// Pairs j < i in rows: (1,0) (2,0) (2,1) (3,0) ..
__device__ inline int64_t pair_at(int64_t i, int64_t j) { return i * (i - 1) / 2 + j; }

__global__ void __launch_bounds__(kGramThreads)
    gram_clear_kernel(int64_t m, uint64_t* count, PairSum* sums) {
  for (int64_t i = grid_first(); i < m * m; i += grid_stride()) {
    count[i] = 0;
    sums[i] = {0.0, 0.0};
  }
}

// Calls visit(packet, entry, element - begin) for every entry of the ternary packets within
// [begin, end), a warp a packet. cursor[i] is the first entry not below begin; where `move` is set
// it becomes the first one not below end.
template <class Visit>
__device__ inline void each_entry(const WeightedPacket* packets, int64_t m, int64_t begin,
                                  int64_t end, bool move, int64_t* cursor, const Visit& visit) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = threadIdx.x / kWarp; i < m; i += kGramThreads / kWarp) {
    if (!is_ternary(packets[i])) continue;
    const PacketView p = packets[i].packet;
    int64_t at = cursor[i];
    unsigned before;  // lanes whose entry is below end
    do {
      const int64_t entry = at + lane;
      const int64_t element = entry < p.k ? index_at(p, entry) : end;
      if (element >= begin && element < end) visit(i, entry, static_cast<int>(element - begin));
      before = __ballot_sync(kWholeWarp, element < end);
      at += __popc(before);
    } while (before == kWholeWarp);
    if (move && lane == 0) cursor[i] = at;
  }
}

// Steps 1 to 3.
__global__ void __launch_bounds__(kGramThreads)
    gram_meet_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, int64_t* cursors,
                     uint64_t* count) {
  constexpr int kOwnElements = kMeetTile / kGramThreads;
  __shared__ uint32_t list[kMeetTile];  // the tally; then where the next entry goes
  __shared__ uint16_t met[kMeetRoom];   // a packet, its sign in the lowest bit
  __shared__ int counts[kMeetPairs];
  __shared__ uint64_t warp_sums[kGramThreads / kWarp];

  const int64_t tiles = ceil_div(numel, kMeetTile), step = ceil_div(tiles, gridDim.x);
  const int64_t first = step * blockIdx.x * kMeetTile, past = first + step * kMeetTile;
  const int64_t last = past < numel ? past : numel;
  const int64_t pairs = m * (m - 1) / 2;
  const bool here = pairs <= kMeetPairs;
  for (int64_t i = threadIdx.x; here && i < pairs; i += kGramThreads) counts[i] = 0;
  int64_t* cursor = cursors + m * blockIdx.x;
  for (int64_t i = threadIdx.x; i < m; i += kGramThreads)
    cursor[i] = packets[i].packet.dense ? 0 : first_entry_from(packets[i].packet, first);

  int64_t window = kMeetTile;
  for (int64_t begin = first; begin < last;) {
    const int64_t size = last - begin < window ? last - begin : window, end = begin + size;
    for (int i = threadIdx.x; i < kMeetTile; i += kGramThreads) list[i] = 0;
    __syncthreads();
    each_entry(packets, m, begin, end, false, cursor,
               [&](int64_t, int64_t, int place) { atomicAdd(&list[place], 1u); });
    __syncthreads();
    uint64_t own = 0, total;
    for (int j = 0; j < kOwnElements; ++j) own += list[threadIdx.x * kOwnElements + j];
    uint64_t start = block_exclusive_sum(own, warp_sums, &total);
    if (total > kMeetRoom && size > 1) {
      window = size / 2;
      continue;
    }
    // More in one element only where indices repeat: then it counts for nothing.
    const bool fits = total <= kMeetRoom;
    for (int j = 0; j < kOwnElements; ++j) {
      uint32_t& to = list[threadIdx.x * kOwnElements + j];
      const uint32_t number = to;
      to = static_cast<uint32_t>(start);
      start += number;
    }
    __syncthreads();
    if (fits) {
      each_entry(packets, m, begin, end, false, cursor, [&](int64_t i, int64_t entry, int place) {
        const int minus = __float_as_int(packets[i].packet.value[entry]) < 0;
        met[atomicAdd(&list[place], 1u)] = static_cast<uint16_t>(2 * i + minus);
      });
    }
    __syncthreads();
    each_entry(packets, m, begin, end, true, cursor, [&](int64_t i, int64_t entry, int place) {
      const uint32_t from = place > 0 ? list[place - 1] : 0, until = list[place];
      if (!fits || until - from < 2) return;
      const int minus = __float_as_int(packets[i].packet.value[entry]) < 0;
      for (uint32_t at = from; at < until; ++at) {
        const int64_t j = met[at] >> 1;
        if (j >= i) continue;
        const int agrees = minus == (met[at] & 1) ? 1 : -1;
        if (here) {
          atomicAdd(&counts[pair_at(i, j)], agrees);
        } else {
          atomic_add(&count[pair_at(i, j)], static_cast<uint64_t>(static_cast<int64_t>(agrees)));
        }
      }
    });
    __syncthreads();
    begin = end;
  }
  for (int64_t i = threadIdx.x; here && i < pairs; i += kGramThreads) {
    if (counts[i] != 0)
      atomic_add(&count[i], static_cast<uint64_t>(static_cast<int64_t>(counts[i])));
  }
}

// Step 4: the products of elements begin + lane, begin + lane + 8, ..
__device__ inline double lane_sum(const PacketView& x, const PacketView& y, int64_t begin,
                                  int64_t size, int lane) {
  double sum = 0;
  if (x.dense && y.dense) {
    for (int64_t e = begin + lane; e < begin + size; e += kLanes)
      sum += static_cast<double>(x.value[e]) * static_cast<double>(y.value[e]);
    return sum;
  }
  const bool swap = x.dense || (!y.dense && y.k < x.k);
  const PacketView& few = swap ? y : x;
  const PacketView& more = swap ? x : y;
  int64_t at = more.dense ? 0 : first_entry_from(more, begin);
  for (int64_t i = first_entry_from(few, begin); i < few.k; ++i) {
    const int64_t element = index_at(few, i), place = element - begin;
    if (place >= size) break;
    if (place < 0 || place % kLanes != lane) continue;
    float other = 0;
    if (more.dense) {
      other = more.value[element];
    } else {
      while (at < more.k && index_at(more, at) < element) ++at;
      if (at < more.k && index_at(more, at) == element) other = more.value[at];
    }
    sum += static_cast<double>(few.value[i]) * static_cast<double>(other);
  }
  return sum;
}

// Step 4, tiles [first, first + tiles).
__global__ void __launch_bounds__(kGramThreads)
    gram_sum_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, int64_t first,
                    int64_t tiles, double* tile_sum) {
  const int lane = threadIdx.x % kLanes;
  // Whole warps go round together: every lane must come to the shuffles.
  for (int64_t warp = grid_first() - threadIdx.x % kWarp; warp < tiles * m * m * kLanes;
       warp += grid_stride()) {
    const int64_t task = (warp + threadIdx.x % kWarp) / kLanes;
    const int64_t tile = first + task / (m * m), i = task / m % m, j = task % m;
    const bool mine =
        task < tiles * m * m && i <= j && !(is_ternary(packets[i]) && is_ternary(packets[j]));
    double sum = 0;
    if (mine) {
      const int64_t begin = tile * kGramTile, left = numel - begin;
      sum = lane_sum(packets[i].packet, packets[j].packet, begin,
                     left < kGramTile ? left : kGramTile, lane);
    }
    sum += __shfl_xor_sync(kWholeWarp, sum, 4);
    sum += __shfl_xor_sync(kWholeWarp, sum, 2);
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    if (mine && lane == 0) tile_sum[task] = sum;
  }
}

// Step 5, the same tiles, `step` of them in a chunk. Pairs that are not summed are left alone.
__global__ void __launch_bounds__(kGramThreads)
    gram_add_kernel(const WeightedPacket* packets, int64_t m, int64_t first, int64_t tiles,
                    int64_t step, const double* tile_sum, PairSum* sums) {
  for (int64_t pair = grid_first(); pair < m * m; pair += grid_stride()) {
    const int64_t i = pair / m, j = pair % m;
    if (i > j || (is_ternary(packets[i]) && is_ternary(packets[j]))) continue;
    PairSum sum = sums[pair];
    for (int64_t t = 0; t < tiles; ++t) {
      if ((first + t) % step == 0) sum = {sum.dot + sum.chunk, 0.0};
      sum.chunk += tile_sum[t * m * m + pair];
    }
    sums[pair] = sum;
  }
}

// Step 6.
__global__ void __launch_bounds__(kGramThreads)
    gram_finish_kernel(const WeightedPacket* packets, int64_t m, const uint64_t* count,
                       const PairSum* sums, double* out) {
  for (int64_t pair = grid_first(); pair < m * m; pair += grid_stride()) {
    const int64_t i = pair / m, j = pair % m, low = i < j ? i : j, high = i < j ? j : i;
    if (is_ternary(packets[i]) && is_ternary(packets[j])) {
      const int64_t c =
          i == j ? packets[i].packet.k : static_cast<int64_t>(count[pair_at(high, low)]);
      out[pair] = (packets[i].weight * packets[j].weight) * static_cast<double>(c);
    } else {
      const PairSum sum = sums[low * m + high];
      out[pair] = sum.dot + sum.chunk;
    }
  }
}

}  // namespace gcext
