// A packet as the kernels that read packets see it: k pairs (index, value), indices strictly
// rising, or dense: numel values and no index.
#pragma once

#include <cstdint>

#include "../codes.h"
#include "isa.h"

namespace gcext {

// One packet, borrowed.
struct PacketView {
  const void* index;  // of a sparse one
  const float* value;
  int64_t k;   // entries; numel where dense
  bool wide;   // index is int64, not int32
  bool dense;  // not by a null index: that of an empty packet may be null, too

  const int32_t* index32() const { return static_cast<const int32_t*>(index); }
  const int64_t* index64() const { return static_cast<const int64_t*>(index); }

  // body(index), with the indices in their own type.
  template <class Body>
  auto with_index(const Body& body) const {
    return wide ? body(index64()) : body(index32());
  }
};

// What the values of a packet are where they are not float32: signs (one bit an entry, lowest
// first, a one is -scale), levels (fl32(norm*level/steps) in float64, a norm for each `bucket`
// elements), powers (natural.h, one an entry), or codes (codes.h, one an entry).
struct ValueCode {
  const uint8_t* bits = nullptr;   // of signs, else null
  const int16_t* level = nullptr;  // of levels, else null
  const int16_t* power = nullptr;  // of powers, else null
  Coded codes;                     // of codes, else without bits
  float scale = 0;                 // of signs and powers
  const float* norm = nullptr;
  int64_t bucket = 0;  // 0: one norm for all
  double steps = 0;

  bool coded() const {
    return bits != nullptr || level != nullptr || power != nullptr || codes.bits != nullptr;
  }
};

// Entries [from, until) of a packet.
//
//   elements  |--------|--------|--------|--------|---     tiles
//   packet     ^ ^  ^     ^  ^                 ^           entries
//             [from  until)                                until = the next tile's from
struct Span {
  int64_t from, until;
  int64_t size() const { return until - from; }
};

// walk: which entries of a packet lie in the tile that a kernel is at, checked on the way. A kernel
// that goes through the packets tile by tile reads every index anyway, so this is where strictly
// rising indices are checked: a pass of its own would read them all from memory again.
struct WalkTable {
  // The first entry from `at` on whose index is not below `end`. Clears *rises, and returns
  // anything, where one of those passed is not above the one before it.
  int64_t (*pass)(const PacketView& packet, int64_t at, int64_t end, bool* rises);
  // The values of a packet of levels, from entry span.from on.
  void (*levels)(const PacketView& packet, const ValueCode& code, Span span, float* value);
};

GCEXT_DECLARE_TABLE(WalkTable, walk_table)

}  // namespace gcext
