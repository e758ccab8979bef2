// codes: fixed-width codes into a table; docs/wire-format.md has the fields, ../codes.h the values.
#pragma once

#include "frame.h"

namespace gcext::wire {

// Takes the fields after the support off the cursor.
void take_codes(Cursor* cursor, Body* body);

// Reads the codes, keeping nothing: 16-bit floats are finite, and a scale of 0 has one code alone.
void check_codes(const Body& body, const Cursor& cursor);

struct CodeArrays {
  int table;  // a CodeTable
  int64_t width, bucket;
  const float* scale;
  int64_t scales;
  const uint8_t* bits;
  int64_t bytes;
};

void put_codes(Message* message, int64_t k, const CodeArrays& arrays);

}  // namespace gcext::wire
