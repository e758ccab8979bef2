#include "fields.h"

#include <algorithm>
#include <string>

#include "../bits.h"

namespace gcext::wire {

// The first of n float32 that is not finite (or, where zeros are forbidden, is zero); n if none.
int64_t first_bad_value(const uint8_t* values, int64_t n, bool zeros_allowed) {
  const uint32_t least = zeros_allowed ? 0 : 1;
  const auto bad = [&](int64_t i) {
    return (load_word(values + 4 * i) & 0x7fffffff) - least >= kInfinity - least;
  };
  constexpr int64_t kBlock = 4096;
  for (int64_t from = 0; from < n; from += kBlock) {
    const int64_t to = std::min(n, from + kBlock);
    unsigned any = 0;
    for (int64_t i = from; i < to; ++i) any |= bad(i);
    if (any == 0) continue;
    for (int64_t i = from; i < to; ++i)
      if (bad(i)) return i;
  }
  return n;
}

const uint8_t* take_floats(Cursor* cursor, int64_t count, const char* field) {
  // Division before multiplication.
  if (count > cursor->left() / 4) cursor->take(cursor->left() + 1, field);
  return cursor->take(4 * count, field, count);
}

void take_k(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  body->k = cursor->varint("k");
  if (body->k > body->numel)
    cursor->fail("k", "k", place,
                 "must be at most the number of elements " + std::to_string(body->numel) +
                     ", got " + std::to_string(body->k) + ".");
}

const uint8_t* take_plane(Cursor* cursor, int64_t bits, const char* field) {
  const uint8_t* plane = cursor->take(plane_bytes(bits, 1), field, bits);
  if (!plane_padded(plane, bits))
    cursor->fail("padding", field, cursor->at() - 1, "must end with zero bits.");
  return plane;
}

// `count` scales or norms: not negative, at most `largest` (as bits).
const uint8_t* take_scales(Cursor* cursor, int64_t count, const char* field, uint32_t largest) {
  const uint8_t* first = take_floats(cursor, count, field);
  for (int64_t i = 0; i < count; ++i)
    if (load_word(first + 4 * i) > largest)
      cursor->fail("scale", field, first + 4 * i,
                   largest == kLargestRotated ? "must be in [0, 2^116]."
                                              : "must be 0, or positive and finite.");
  return first;
}

void check_floats(const char* method, const char* what, const float* value, int64_t n,
                  uint32_t largest) {
  for (int64_t i = 0; i < n; ++i)
    if (bits_of(value[i]) > largest)
      throw PackError(std::string("pack: ") + what + " of a " + method +
                      " packet must be at least 0 and " +
                      (largest == kLargestRotated ? "at most 2^116" : "finite") + ", got " +
                      std::to_string(value[i]) + ". Scale the tensor down.");
}

void check_count(const char* method, const char* what, int64_t got, int64_t want) {
  if (got != want)
    throw PackError(std::string("pack: a ") + method + " packet needs " + std::to_string(want) +
                    " " + what + ", got " + std::to_string(got) + ".");
}

void check_padding(const char* method, const uint8_t* plane, int64_t bits) {
  if (!plane_padded(plane, bits))
    throw PackError(std::string("pack: the bits of a ") + method +
                    " packet must end with zeros. Clear those after the last.");
}

void put_floats(Message* message, const float* value, int64_t n) {
  if (n > 0) message->borrow(value, 4 * n);
}

}  // namespace gcext::wire
