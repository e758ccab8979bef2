// levels: norms times whole steps, most of them often 0; docs/wire-format.md has the fields.
//
//   value = float(double(norm) * level / steps)      norm: that of the element's bucket
//
// The places of the levels that are not 0 (or, where those are the fewer, of the others) make a
// section, and so do their magnitudes: these are its gaps plus one, and its tiles adapt to how
// large they are.
//
//   levels  0 2 0 -1 3      places 1 3 4      signs 0 1 0      numbers 1 2 5 (2-1, +1, +3)
#pragma once

#include <cstdint>

#include "norms.h"

namespace gcext::wire {

// Takes the fields after the support off the cursor.
void take_levels(Cursor* cursor, Body* body);

// Opens the streams, keeping nothing.
void check_levels(const Body& body, const Cursor& cursor);

// Fills the places of the levels that are not 0, and these, each body.levels.places long.
template <class Index>
void read_levels(const Body& body, const Cursor& cursor, Index* at, int16_t* level);

template <class Index>
void put_levels(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                int64_t places);

}  // namespace gcext::wire
