// levels2: norms times whole steps, as levels, with the gap before each level that is not 0 and its
// magnitude as one symbol of a prefix code; docs/wire-format.md has the fields.
//
//   number      0  1  2  3  4 5  6 7  8..11  12..15  16..23 ..      class 2e or 2e + 1 from 2^e on,
//   class       0  1  2  3   4    5     6      7       8            of halves; low bits: e - 1
//
//   levels  0 2 0 -1 3      gaps 1 1 0      magnitudes less one 1 0 2
//   symbol  30 * class of the gap + class of the magnitude less one
//   bits    word, low bits of the gap, low bits of the magnitude less one, sign
#pragma once

#include "norms.h"
#include "prefix.h"

namespace gcext::wire {

constexpr int64_t kGapClasses = 126, kMagnitudeClasses = 30;
constexpr int64_t kRunSymbols = kGapClasses * kMagnitudeClasses;
static_assert(kRunSymbols <= kMaxAlphabet);
constexpr int64_t kMostRunBits = kLongestWord + 61 + 13 + 1;

// Takes the fields after the support off the cursor.
void take_levels2(Cursor* cursor, Body* body);

// Opens the stream, keeping nothing.
void check_levels2(const Body& body, const Cursor& cursor);

// Fills the places of the levels that are not 0, and these, each body.levels.places long.
template <class Index>
void read_levels2(const Body& body, const Cursor& cursor, Index* at, int16_t* level);

template <class Index>
void put_levels2(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                 int64_t places);

}  // namespace gcext::wire
