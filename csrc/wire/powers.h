// powers: signed powers of two times one scale, or 0, as symbols of a prefix code;
// docs/wire-format.md has the fields.
//
//   symbol   0      1        2  ..  278         after the word of all but 0 a sign bit, 1 negative
//   value    0   2^-149   2^-148  .. 2^128      times scale in float64, rounded once to float32
#pragma once

#include "prefix.h"

namespace gcext::wire {

constexpr int64_t kPowers2 = 279;  // symbols: zero and the powers
constexpr int kPowerOfSymbol0 = -150;
constexpr int64_t kMostPowerBits = kLongestWord + 1;

// Takes the fields after the support off the cursor.
void take_powers(Cursor* cursor, Body* body);

// Opens the stream, keeping nothing.
void check_powers(const Body& body, const Cursor& cursor);

// The largest magnitude of its values; 0 where all are 0.
float largest_power(const Body& body, const Cursor& cursor);

// How many numbers read_powers fills: k, none where all are 0.
inline int64_t power_count(const Body& body) { return body.prefix.kinds > 0 ? body.k : 0; }
void read_powers(const Body& body, const Cursor& cursor, int16_t* power);

// power: a symbol, negative with the sign; none where all k are 0.
void put_powers(Message* message, int64_t k, float scale, const int16_t* power, int64_t powers);

}  // namespace gcext::wire
