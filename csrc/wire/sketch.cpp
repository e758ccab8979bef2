#include "sketch.h"

#include <cstring>
#include <string>

#include "fields.h"

namespace gcext::wire {

void take_sketch(Cursor* cursor, Body* body) {
  SketchFields& sketch = body->sketch;
  const auto within = [&](int64_t got, int64_t most, const char* field, const uint8_t* place) {
    if (got < 1 || got > most)
      cursor->fail(
          "sketch", field, place,
          "must be in [1, " + std::to_string(most) + "], got " + std::to_string(got) + ".");
  };
  const uint8_t* place = cursor->at();
  sketch.rows = cursor->byte("rows");
  within(sketch.rows, kMostRows, "rows", place);
  place = cursor->at();
  sketch.cols = cursor->varint("cols");
  within(sketch.cols, kMostCols, "cols", place);
  std::memcpy(&sketch.seed, cursor->take(8, "seed"), 8);
  sketch.cell = take_floats(cursor, sketch.rows * sketch.cols, "cells");
  body->support = kAll;
  body->k = body->numel;
}

void check_sketch(const Body& body, const Cursor& cursor) {
  const SketchFields& sketch = body.sketch;
  const int64_t cells = sketch.rows * sketch.cols, bad = first_bad_value(sketch.cell, cells, true);
  if (bad < cells) cursor.fail("value", "cells", sketch.cell + 4 * bad, "must be finite.");
}

void put_sketch(Message* message, const SketchArrays& arrays) {
  if (arrays.rows < 1 || arrays.rows > kMostRows)
    throw PackError("pack: rows must be in [1, 64], got " + std::to_string(arrays.rows) + ".");
  if (arrays.cols < 1 || arrays.cols > kMostCols)
    throw PackError("pack: cols must be in [1, 2^31), got " + std::to_string(arrays.cols) + ".");
  check_count("sketch", "cells", arrays.cells, arrays.rows * arrays.cols);
  const int64_t bad =
      first_bad_value(reinterpret_cast<const uint8_t*>(arrays.cell), arrays.cells, true);
  if (bad < arrays.cells)
    throw PackError("pack: the cells of a sketch must be finite, got another at place " +
                    std::to_string(bad) + ".");
  message->byte(static_cast<uint8_t>(arrays.rows));
  message->varint(static_cast<uint64_t>(arrays.cols));
  message->number(arrays.seed, 8);
  put_floats(message, arrays.cell, arrays.cells);
}

}  // namespace gcext::wire
