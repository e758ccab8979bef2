// combine: the weighted sum of m packets as one dense tensor, and a packet added to a dense tensor,
// or many to one each.
//
//   out_e   = fl32(w_1*x_1e + .. + w_m*x_me)           float64 from +0, in the packets' order, each
//                                                      product and each sum rounded; then once to
//                                                      float32
//   dense_e = fl32(dense_e + fl32(fl32(alpha)*x_e))    where the packet has an entry, float32
//
//   elements  |--------|--------|--------|--------|---     tiles of kCombineTile
//             <----- part 0 ----><----- part 1 ----->      each thread owns whole tiles
//   packet 1   ^ ^  ^     ^                                a cursor a packet and part, which only
//   packet 2    ^      ^    ^  ^                           moves forward: every entry is read once
//
// Values that are not float32 (ValueCode) become it in pieces, in the cache.
//
// A tile is summed in float64 scratch that stays in the cache and leaves it rounded, so memory sees
// the packets once and the output once. No element is touched by two threads and each is summed in
// packet order: the result depends neither on the number of threads nor on the
// instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/packet_view.h"

namespace gcext {

// 128 KiB of float64, for the second-level cache. A smaller one reads too little of each packet at
// a time: at p = 0.01 the 160 entries of 16,384 elements are ten lines, which a prefetcher notices.
constexpr int64_t kCombineTile = 16384;
// Of packets that all are dense, which are read line by line: for the first-level cache. A divisor
// of the above.
constexpr int64_t kDenseTile = 2048;

// The bodies that walk a packet start at entry `at` and return the first entry whose index is not
// below `end`; element `begin` is at offset 0 of the tile.
struct CombineTable {
  // sum[index - begin] += weight*value
  int64_t (*add)(const PacketView& packet, int64_t at, int64_t begin, int64_t end, double weight,
                 double* sum);
  void (*add_dense)(const float* value, int64_t n, double weight, double* sum);
  // out[index - begin] = fl32(0 + weight*value): the tile of a lone packet, without the scratch
  int64_t (*place)(const PacketView& packet, int64_t at, int64_t begin, int64_t end, double weight,
                   float* out);
  // out = sum rounded; sum = 0
  void (*round)(double* sum, int64_t n, float* out);
  // Entries [from, until) of the packet into the whole dense tensor.
  void (*add_in_place)(const PacketView& packet, int64_t from, int64_t until, float alpha,
                       float* dense);
  // Whether that leaves every element of the tensor that is finite so; nothing is written.
  bool (*stays_finite)(const PacketView& packet, int64_t from, int64_t until, float alpha,
                       const float* dense);
};

GCEXT_DECLARE_TABLE(CombineTable, combine_table)

}  // namespace gcext
