// rice on CUDA: the kernels, of any number of packets at once. csrc/rice.h has the code,
// docs/wire-format.md the streams, rice.cu the sequence.
//
//   grid    |  item 0  |  item 1  | item 2 |..       an item: one packet, with blocks of its own
//   item    |--block 0--|--block 1--|..              a block: contiguous tiles, one after another
//   tile    |--1024--|--1024--|--1024--|-            a thread: four consecutive numbers of a tile
//
// Packing, k and the numbers read from the device (rice_pack.cuh):
//
// 1. Measure: each tile's b, by a search in base 4: S(b) never rises, and three S are added up in
//    one 64-bit sum. b and zeros go to the tile table, the bits of a block's tiles to its totals.
//    What follows the table is cleared.
// 2. Write: every block adds up the totals before its own, which is where it begins in each stream.
//    A tile's remainders are gathered word by word (planes.cuh), its unary part is or-ed together
//    in shared memory, its signs are ballots. A word that lies wholly in the tile's part of a
//    stream is stored; one on an edge may belong to two and is or-ed into the zeros of step 1.
//
// Unpacking (rice_unpack.cuh):
//
// 3. Read: every block adds up the table before its own tiles. The ones of the unary part are found
//    16 bits a thread, counted by a scan; with the remainders' scan they give each number less what
//    lies before the tile. A tile's span is its last number so, plus one.
// 4. Place: every block adds up the spans before its own and adds them to its numbers.
//
// Traffic: packing reads 4*k bytes of indices twice (the second time from the cache), 4*k of
// values, and writes the streams twice, about 1.2*k at p = 0.01. Unpacking reads these, writes 8*k
// and passes over the indices once more. Beside the 12*numel bytes of a select both are small, so
// it is the launches that count: two for as many packets as kernel arguments hold.
#pragma once

#include "planes.cuh"
#include "rice_launch.h"

namespace gcext {

constexpr int kRiceThreads = 256;
constexpr int kOwn = static_cast<int>(kTile) / kRiceThreads;
constexpr int64_t kTableEntry = 3;  // u8 b, u16 zeros

// Items on their way to the device, as a kernel's argument: a copy from the host's pageable memory
// would wait for the stream. Blocks are numbered through all the chunks of a call, as their totals
// are: item j has the blocks [first[j], first[j + 1]), the grid begins at first[0].
template <class Item>
struct Chunk {
  static constexpr int kMost = (4096 - 64) / static_cast<int>(sizeof(Item) + sizeof(uint32_t));
  Item item[kMost];
  uint32_t first[kMost + 1];
  int count;
};

// The item of a block of the grid, and its place among that item's blocks.
template <class Item>
struct RicePart {
  Item item;
  int64_t block, blocks;  // of the item's
  int64_t first;          // the number of block 0
};

template <class Item>
__device__ inline RicePart<Item> part_of(const Chunk<Item>& chunk) {
  const uint32_t number = chunk.first[0] + blockIdx.x;
  const int64_t item = last_not_above(chunk.first, chunk.count, number);
  const uint32_t first = chunk.first[item];
  return {chunk.item[item], number - first, chunk.first[item + 1] - first, first};
}

// Of one block's tiles.
struct PackTotals {
  uint64_t remainder_bits, unary_bits, wrong;
};
struct UnpackTotals {
  uint64_t span, wrong;
};
static_assert(sizeof(PackTotals) <= kRiceTotals && sizeof(UnpackTotals) <= kRiceTotals, "scratch");

struct TileRange {
  int64_t begin, end;
};

// A block's tiles: the same in both kernels of a call.
template <class Item>
__device__ inline TileRange tile_range(const RicePart<Item>& part, int64_t k) {
  const int64_t tiles = ceil_div(k, kTile), step = ceil_div(tiles, part.blocks);
  const int64_t begin = step * part.block, end = begin + step;
  return {begin < tiles ? begin : tiles, end < tiles ? end : tiles};
}

__device__ inline int64_t tile_numbers(int64_t tile, int64_t k) {
  const int64_t left = k - tile * kTile;
  return left < kTile ? left : kTile;
}

__device__ inline uint64_t block_sum(uint64_t x, uint64_t* warp_sums) {
  uint64_t total;
  block_exclusive_sum(x, warp_sums, &total);
  return total;
}

struct Numbers {
  const void* index;
  bool wide;

  __device__ int64_t at(int64_t i) const {
    return wide ? static_cast<const int64_t*>(index)[i] : static_cast<const int32_t*>(index)[i];
  }
};

}  // namespace gcext
