// rice on CUDA, steps 3 and 4 of rice.cuh: read and place.
#pragma once

#include "rice.cuh"

namespace gcext {

// Where the streams of a message are, in bits.
struct Streams {
  BitStream bits;
  int64_t table, remainders, unary, signs;

  __device__ int rice(int64_t tile) const {
    return static_cast<int>(bits.read(table + 8 * kTableEntry * tile, 8));
  }
  __device__ int64_t zeros(int64_t tile) const {
    return static_cast<int64_t>(bits.read(table + 8 * kTableEntry * tile + 8, 16));
  }
};

__device__ inline Streams streams_of(const BitStream& message, const UnpackItem& item) {
  const int64_t remainders = item.begin + kTableEntry * ceil_div(item.k, kTile);
  const int64_t signs = item.end - ceil_div(item.k, 8);
  return {message, 8 * item.begin, 8 * remainders, 8 * (remainders + item.remainder_bytes),
          8 * signs};
}

// Step 3. What a tile adds to sums stays below 2^63 + 2^62 + 2^10, as b <= kUnpackRice, and what a
// block keeps of them does not exceed numel.
__global__ void __launch_bounds__(kRiceThreads)
    rice_read_kernel(Chunk<UnpackItem> chunk, BitStream message, UnpackTotals* totals) {
  constexpr int kPiece = 16;
  static_assert(3 * kTile <= kPiece * kRiceThreads, "a piece of the unary part for each thread");
  __shared__ int place[kTile];
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];

  const RicePart<UnpackItem> part = part_of(chunk);
  const UnpackItem& item = part.item;
  const int64_t k = item.k;
  const Streams streams = streams_of(message, item);
  const TileRange range = tile_range(part, k);
  uint64_t bits_before = 0, zeros_before = 0;
  for (int64_t t = threadIdx.x; t < range.begin; t += kRiceThreads) {
    bits_before += static_cast<uint64_t>(kTile * streams.rice(t));
    zeros_before += static_cast<uint64_t>(streams.zeros(t));
  }
  int64_t remainder_at =
      streams.remainders + static_cast<int64_t>(block_sum(bits_before, warp_sums));
  int64_t unary_at = streams.unary + range.begin * kTile +
                     static_cast<int64_t>(block_sum(zeros_before, warp_sums));

  UnpackTotals total = {};
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, k), first = tile * kTile;
    const int b = streams.rice(tile);
    const int64_t zeros = streams.zeros(tile), unary_bits = n + zeros;
    // Rule 2. A hostile tile may have more ones than there are places.
    const int64_t from = static_cast<int64_t>(threadIdx.x) * kPiece, left = unary_bits - from;
    uint64_t piece = left <= 0 ? 0
                               : streams.bits.read(unary_at + from,
                                                   static_cast<int>(left < kPiece ? left : kPiece));
    uint64_t ones;
    int64_t at = static_cast<int64_t>(block_exclusive_sum(
        static_cast<uint64_t>(__popc(static_cast<unsigned>(piece))), warp_sums, &ones));
    for (; piece != 0 && at < kTile; ++at, piece &= piece - 1)
      place[at] = static_cast<int>(from) + __ffs(static_cast<int>(piece)) - 1;
    __syncthreads();
    if (b > kUnpackRice || zeros > 2 * n || ones != static_cast<uint64_t>(n) ||
        place[n - 1] != unary_bits - 1) {
      total.wrong = 1;  // the same for every thread
      break;
    }
    // The sums that prove b, and the scan of the remainders.
    uint64_t remainder[kOwn], own = 0, halves = 0, tops = 0;
    for (int j = 0; j < kOwn; ++j) {
      const int i = static_cast<int>(threadIdx.x) * kOwn + j;
      remainder[j] = 0;
      if (i >= n) continue;
      remainder[j] = streams.bits.read(remainder_at + i * b, b);
      own += remainder[j];
      halves += static_cast<uint64_t>(place[i] - (i > 0 ? place[i - 1] : -1)) >> 1;
      if (b > 0) tops += remainder[j] >> (b - 1);
    }
    uint64_t sum, offset = block_exclusive_sum(own, warp_sums, &sum);
    const uint64_t proof = block_sum(tops << 32 | halves, warp_sums), m = static_cast<uint64_t>(n);
    const uint64_t span = m + (static_cast<uint64_t>(zeros) << b) + sum;
    const bool canonical =
        (proof & 0xffffffffu) <= m && (b == 0 || static_cast<uint64_t>(zeros) + (proof >> 32) > m);
    if (!canonical || span > static_cast<uint64_t>(item.numel) - total.span) {
      total.wrong = 1;
      break;
    }
    for (int j = 0; j < kOwn; ++j) {
      const int i = static_cast<int>(threadIdx.x) * kOwn + j;
      if (i >= n) continue;
      offset += remainder[j];
      const uint64_t number =
          offset + static_cast<uint64_t>(i) + (static_cast<uint64_t>(place[i] - i) << b);
      if (item.wide) {
        static_cast<int64_t*>(item.index)[first + i] = static_cast<int64_t>(number);
      } else {
        static_cast<int32_t*>(item.index)[first + i] = static_cast<int32_t>(number);
      }
    }
    for (int64_t i = threadIdx.x; i < n; i += kRiceThreads) {
      const uint32_t sign = static_cast<uint32_t>(streams.bits.read(streams.signs + first + i, 1));
      item.value[first + i] = __int_as_float(static_cast<int>(item.scale | sign << 31));
    }
    total.span += span;
    remainder_at += n * b;
    unary_at += unary_bits;
    __syncthreads();  // place is free again
  }
  if (threadIdx.x == 0) totals[part.first + part.block] = total;
}

// Step 4. The blocks' spans are at most numel each: 1024 of them do not wrap.
__global__ void __launch_bounds__(kRiceThreads)
    rice_place_kernel(Chunk<UnpackItem> chunk, const UnpackTotals* totals) {
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];
  const RicePart<UnpackItem> part = part_of(chunk);
  const UnpackItem& item = part.item;
  uint64_t own = 0, own_all = 0, own_wrong = 0;
  for (int64_t i = threadIdx.x; i < part.blocks; i += kRiceThreads) {
    const UnpackTotals each = totals[part.first + i];
    own_all += each.span;
    own_wrong += each.wrong;
    if (i < part.block) own += each.span;
  }
  const uint64_t all = block_sum(own_all, warp_sums);
  const bool bad =
      block_sum(own_wrong, warp_sums) != 0 || all > static_cast<uint64_t>(item.numel);  // rule 4
  if (part.block == 0 && threadIdx.x == 0) *item.wrong = bad;
  if (bad) return;
  int64_t before = static_cast<int64_t>(block_sum(own, warp_sums));
  const TileRange range = tile_range(part, item.k);
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, item.k), first = tile * kTile;
    const int64_t span = Numbers{item.index, item.wide}.at(first + n - 1) + 1;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < first + n; i += kRiceThreads) {
      if (item.wide) {
        static_cast<int64_t*>(item.index)[i] += before;
      } else {
        static_cast<int32_t*>(item.index)[i] += static_cast<int32_t>(before);
      }
    }
    before += span;
  }
}

}  // namespace gcext
