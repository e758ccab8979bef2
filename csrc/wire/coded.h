// coded: random, sign, levels, polar and codes. A support says which k elements travel, and a value
// code what they became; docs/wire-format.md has the fields.
//
//   | u8 support | 1, 2: varint k | 1: section of k indices | 2: u64 seed | the code's fields |
//
//   random  k float32                             value i
//   sign    scale, k sign bits                    scale, negative where bit i is set
//   levels  norms, places, signs, magnitudes      norm * level / steps in float64, rounded once
//   polar   scales, K bits for every N symbols    decoded by csrc/polar/polar.h
//   codes   scales or tables, k fixed-width codes decoded by csrc/codes.h
#pragma once

#include <cstdint>

#include "frame.h"

namespace gcext::wire {

constexpr int64_t kPolarTable = 1;  // the version of the frozen sets

// Random packets draw theirs; signs at given indices are ternary.
bool support_allowed(Method method, uint8_t support);

// How many scales and bits a polar message of k elements has.
struct PolarSize {
  int64_t scales;
  unsigned __int128 bits;
};
PolarSize polar_size(int64_t k, int64_t block, int64_t kept, bool rotated);

// Takes a coded body's fields off the cursor.
void take_coded(Cursor* cursor, Body* body);

// Opens the streams of a coded body's values.
void check_coded(const Body& body, const Cursor& cursor);

void put_support(Message* message, Support support, int64_t k, uint64_t seed);
void put_random(Message* message, int64_t k, const float* value, int64_t values);
void put_sign(Message* message, int64_t k, float scale, const uint8_t* bits, int64_t bytes);

struct PolarArrays {
  int64_t block, kept;
  bool soft, rotated;
  uint64_t seed;
  const float* scale;
  int64_t scales;
  const uint8_t* message;
  int64_t bytes;
};
void put_polar(Message* message, int64_t k, const PolarArrays& arrays);

}  // namespace gcext::wire
