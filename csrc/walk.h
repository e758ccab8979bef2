// walk: which entries of a packet lie in the tile that a kernel is at, checked on the way.
//
//   elements  |--------|--------|--------|--------|---     tiles
//   packet     ^ ^  ^     ^  ^                 ^           entries
//             [from  until)                                until = the next tile's from
//
// A kernel that goes through the packets tile by tile reads every index anyway, so this is where
// strictly rising indices are checked: a pass of its own would read them all from memory again.
#pragma once

#include <cstdint>

#include "combine.h"
#include "isa.h"

namespace gcext {

// Entries [from, until) of a packet.
struct Span {
  int64_t from, until;
  int64_t size() const { return until - from; }
};

struct WalkTable {
  // The first entry from `at` on whose index is not below `end`. Clears *rises, and returns
  // anything, where one of those passed is not above the one before it.
  int64_t (*pass)(const PacketView& packet, int64_t at, int64_t end, bool* rises);
};

GCEXT_DECLARE_TABLE(WalkTable, walk_table)

}  // namespace gcext
