// vote: the sign that most of m packets have at each element, as one dense tensor.
//
//   out_e = -scale   where more packets have a negative value at e than a positive one
//           +scale   where fewer do
//            0       where as many do, or none has any
//
// A voter is a plane of sign bits, one an element (1 is negative; bits.h), or a sparse packet,
// whose entries vote with the sign of their value, and which abstains where it has none.
//
// 64 elements are counted in one word: counter level l holds bit l of each element's count.
//
//   element     0 1 2 3 4 ..        counts 0..m need L = bit length of m levels
//   level 0     1 0 1 1 0
//   level 1     1 1 0 0 0           element 0: 3, element 1: 2, element 2: 1, ..
//   level 2     0 0 0 0 0
//
//   1. Minus counts the negative votes: two planes and level 0 go through full adders, the carry
//      through half adders from level 1 up.
//   2. There counts all votes: it starts with the number of planes, and sparse packets add theirs.
//   3. 2*minus against there, from the highest bit down: above (negative wins), equal, or below.
//
// Integer work on tiles of kVoteTile elements distributed over threads: nothing to round.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/packet_view.h"

namespace gcext {

// A counter of five levels, of twenty packets, is 5 KiB.
constexpr int64_t kVoteTile = 8192;
constexpr int64_t kVoteWords = kVoteTile / 64;

struct VotePlane {
  uint64_t word[kVoteWords];
};

struct VoteTable {
  // Adds the bits of two planes (a lone one: b all zeros) to a counter of `levels` planes; the sum
  // must fit. The planes are scratch.
  void (*add)(VotePlane* a, VotePlane* b, int64_t levels, VotePlane* counter);
  // Sets the bits of a sparse packet's entries from `at` on; the entry after the tile.
  int64_t (*mark)(const PacketView& packet, int64_t at, int64_t begin, VotePlane* there,
                  VotePlane* minus);
  // Step 3: bits of `above` where 2*minus > there, of `equal` where they are equal.
  void (*decide)(const VotePlane* minus, const VotePlane* there, int64_t levels, VotePlane* above,
                 VotePlane* equal);
  void (*spread)(const VotePlane& above, const VotePlane& equal, int64_t n, float scale,
                 float* out);
};

GCEXT_DECLARE_TABLE(VoteTable, vote_table)

}  // namespace gcext
