// gram: all pairwise dot products of m packets, without decompressing them.
//
//   two ternary packets   dot = (mu_i*mu_j)*(double)c      c = agreements - disagreements of their
//                                                          signs, an integer; c_ii = k_i
//   any other pair        dot = the float64 sum of the products x_ie*y_je (each exact), see below
//
// So dots of ternary packets are exact up to two roundings, and their signs are exact: the branch
// `dot < 0` of the projection falls the same way everywhere.
//
// Elements are cut into tiles, tiles into at most kGramChunks chunks: by numel alone, never by
// threads. Threads take chunks, each with the upper triangle of the matrix to itself.
//
//   1. Ternary packets become two planes a tile, one bit an element:
//          there  0 1 0 0 1 1 0 0     an entry
//          minus  0 0 0 0 1 0 0 0     a negative one
//   2. c of two packets is popcount(common) - 2*popcount(common & (minus_i ^ minus_j)), common =
//      there_i & there_j: 64 elements a word whatever their density. Where one of the two has few
//      entries in the tile, these are looked up in the other's planes instead.
//   3. Other pairs: one of the two is spread over a dense float32 tile, and the other's entries are
//      looked up in it. The sum runs over eight lanes, element e in lane e mod 8, each in order of
//      e; the lanes of a tile are added as ((0+4)+(2+6)) + ((1+5)+(3+7)), tiles to their chunk and
//      chunks to the dot in order. Products with zero change nothing, so the bits do not depend on
//      which of the two is spread, on how a packet says its zeros, nor on the order of the packets.
//   4. Counts and sums of the chunks are added in order; the lower triangle is the mirrored upper.
#pragma once

#include <cstdint>

#include "combine.h"
#include "isa.h"

namespace gcext {

// 4 KiB of planes a packet: those of a hundred packets stay in the second-level cache. A multiple
// of 512, the bits of the widest register.
constexpr int64_t kGramTile = 16384;
constexpr int64_t kGramWords = kGramTile / 64;

// Bounds the memory, 8 bytes a chunk and pair, and the number of threads that can help.
constexpr int64_t kGramChunks = 32;

struct Planes {
  uint64_t there[kGramWords];
  uint64_t minus[kGramWords];
};

// Entries [from, until) of a packet lie within the tile whose first element is `begin`.
struct GramTable {
  // With fewer entries than this in the tile, look_up of them costs less than agree.
  int64_t few;
  // Entries from `at` up to the end of the tile into planes that are all zeros; the entry after
  // them.
  int64_t (*mark)(const PacketView& packet, int64_t at, int64_t begin, Planes* planes);
  int64_t (*agree)(const Planes& a, const Planes& b);
  int64_t (*look_up)(const PacketView& packet, int64_t from, int64_t until, int64_t begin,
                     const Planes& planes);
  // x[index - begin] = value, or 0 where `clear`.
  void (*spread)(const PacketView& packet, int64_t from, int64_t until, int64_t begin, bool clear,
                 float* x);
  double (*dot_entries)(const PacketView& packet, int64_t from, int64_t until, int64_t begin,
                        const float* x);
  double (*dot_dense)(const float* x, const float* y, int64_t n);
};

GCEXT_DECLARE_TABLE(GramTable, gram_table)

}  // namespace gcext
