// Reads a message front to back; every read is bounds-checked and names its field.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "error.h"

namespace gcext::wire {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is little-endian");

// `end` is where the body must stop: the checksum's first byte. `scope` stands before field names
// ("members[3]." in a group).
class Cursor {
 public:
  Cursor(const uint8_t* begin, const uint8_t* at, const uint8_t* end)
      : begin_(begin), at_(at), end_(end) {}

  const uint8_t* at() const { return at_; }
  int64_t left() const { return end_ - at_; }
  int64_t offset_of(const uint8_t* place) const { return place - begin_; }
  void scope(std::string scope) { scope_ = std::move(scope); }

  [[noreturn]] void fail(const char* code, const char* field, const uint8_t* place,
                         const std::string& text) const {
    throw DecodeError(code, scope_ + field, offset_of(place), text);
  }

  // `bytes` more bytes; any count up to 2^63 - 1 may be asked for.
  const uint8_t* take(int64_t bytes, const char* field) {
    if (bytes > left())
      fail("truncated", field, at_,
           "needs " + std::to_string(bytes) + " bytes, got " + std::to_string(left()) +
               ". Fetch the message again.");
    const uint8_t* place = at_;
    at_ += bytes;
    return place;
  }

  uint8_t byte(const char* field) { return *take(1, field); }

  uint32_t word(const char* field) {
    uint32_t x;
    std::memcpy(&x, take(4, field), 4);
    return x;
  }

  // A minimal LEB128 number below 2^63.
  int64_t varint(const char* field) {
    const uint8_t* first = at_;
    uint64_t value = 0;
    for (int shift = 0; shift < 63; shift += 7) {
      const uint8_t x = byte(field);
      value |= static_cast<uint64_t>(x & 0x7f) << shift;
      if (x < 0x80) {
        if (x == 0 && shift > 0)
          fail("varint", field, first, "must be minimal, got a zero last byte.");
        return static_cast<int64_t>(value);
      }
    }
    fail("varint", field, first, "must be below 2^63, got more than 9 bytes.");
  }

 private:
  const uint8_t* begin_;
  const uint8_t* at_;
  const uint8_t* end_;
  std::string scope_;
};

}  // namespace gcext::wire
