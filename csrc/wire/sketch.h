// sketch: the table of a count sketch, from which all elements are estimated.
//
//   | u8 rows | varint cols | u64 seed | rows * cols float32 |
//
// docs/wire-format.md has the estimates, csrc/sketch.h makes them.
#pragma once

#include <cstdint>

#include "frame.h"

namespace gcext::wire {

constexpr int64_t kMostRows = 64, kMostCols = INT32_MAX;

// Takes a sketch body's fields off the cursor.
void take_sketch(Cursor* cursor, Body* body);

// Checks that the cells are finite.
void check_sketch(const Body& body, const Cursor& cursor);

struct SketchArrays {
  int64_t rows, cols;
  uint64_t seed;
  const float* cell;
  int64_t cells;
};
void put_sketch(Message* message, const SketchArrays& arrays);

}  // namespace gcext::wire
