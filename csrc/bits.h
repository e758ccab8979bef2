// bits: fixed-width planes, little-endian, densest first bit lowest.
//
//   value   v0        v1        v2            b bits each, 0 <= b <= 32, no gaps between them
//   bit     0 .. b-1  b .. 2b-1 2b .. 3b-1    bit i of the plane is bit (i & 7) of byte (i >> 3)
//   bytes   ceil(n*b / 8); the bits after the last value are zero
//
//   signs   bit i is 1 where value i is negative (its IEEE sign bit), so a ternary value is
//           scale with the sign bit of the plane: (-1)^bit * scale
//
// Eight values always begin at a byte boundary, and take exactly b bytes; the bodies rest on this.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace gcext {

// Sizes are in elements. The pack functions write ceil(n*b / 8) bytes and none beyond. The unpack
// functions may read, and ignore, up to kBitsSlack bytes after the plane: the caller makes them
// readable (in a packet the checksum is always there). unpack_signs reads the plane alone.
constexpr int kBitsSlack = 8;

struct BitsTable {
  // Packs the low b bits of n values; the bits above b must be zero.
  void (*pack)(const uint32_t* value, int64_t n, int b, uint8_t* out);
  void (*unpack)(const uint8_t* in, int64_t n, int b, uint32_t* value);
  void (*pack_signs)(const float* value, int64_t n, uint8_t* out);
  void (*unpack_signs)(const uint8_t* in, int64_t n, float scale, float* value);
};

GCEXT_DECLARE_TABLE(BitsTable, bits_table)

// The table of the instruction set in use.
inline const BitsTable& bits() {
  static const BitsTable& table = GCEXT_TABLE(bits_table);
  return table;
}

// The bytes of a plane of n values of b bits. n*b must stay below 2^63.
inline int64_t plane_bytes(int64_t n, int b) { return n * b / 8 + (n * b % 8 != 0); }

// True where the bits after bit `bits` in the last byte of a plane are zero.
inline bool plane_padded(const uint8_t* plane, int64_t bits) {
  return (bits & 7) == 0 || (plane[bits >> 3] >> (bits & 7)) == 0;
}

}  // namespace gcext
