// Fields that several methods have, taken off a cursor and checked.
#pragma once

#include <cstdint>
#include <cstring>

#include "frame.h"

namespace gcext::wire {

constexpr uint32_t kInfinity = 0x7f800000;

inline uint32_t bits_of(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return word;
}

inline uint32_t load_word(const uint8_t* place) {
  uint32_t word;
  std::memcpy(&word, place, 4);
  return word;
}

// The first of n float32 that is not finite (or, where zeros are forbidden, is zero); n if none.
int64_t first_bad_value(const uint8_t* values, int64_t n, bool zeros_allowed);

// `count` float32; any count below 2^63 may be asked for.
const uint8_t* take_floats(Cursor* cursor, int64_t count, const char* field);

// The largest scale of a rotated message, 2^116: a rotation makes values up to sqrt(2^20) scales.
constexpr uint32_t kLargestRotated = 0x79800000;

// `count` scales or norms: not negative, at most `largest` (as bits).
const uint8_t* take_scales(Cursor* cursor, int64_t count, const char* field, uint32_t largest);

// k, at most the number of elements.
void take_k(Cursor* cursor, Body* body);

// `bits` bits and their padding.
const uint8_t* take_plane(Cursor* cursor, int64_t bits, const char* field);

// The same rules on the way out; they throw PackError.
void check_floats(const char* method, const char* what, const float* value, int64_t n,
                  uint32_t largest);
void check_count(const char* method, const char* what, int64_t got, int64_t want);
void check_padding(const char* method, const uint8_t* plane, int64_t bits);

void put_floats(Message* message, const float* value, int64_t n);

}  // namespace gcext::wire
