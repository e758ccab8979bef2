// Reads a message front to back; every read is bounds-checked and names its field.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"

namespace gcext::wire {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is little-endian");

// One field as it was read.
struct Field {
  std::string name;
  int64_t offset, bytes;  // in the message
  int64_t value;          // a number, or how many elements or bits an array has; -1: neither
  int64_t missing;        // bytes that the message lacks
};

// `end` is where the body must stop: the checksum's first byte. `scope` stands before field names
// ("members[3]." in a group). With a trace, every field that is read is appended to it.
class Cursor {
 public:
  Cursor(const uint8_t* begin, const uint8_t* at, const uint8_t* end)
      : begin_(begin), at_(at), end_(end) {}

  const uint8_t* at() const { return at_; }
  int64_t left() const { return end_ - at_; }
  int64_t offset_of(const uint8_t* place) const { return place - begin_; }
  void scope(std::string scope) { scope_ = std::move(scope); }
  const std::string& scope() const { return scope_; }
  // The same, untraced, from another place of the message on.
  Cursor from(const uint8_t* place) const {
    Cursor other(begin_, place, end_);
    other.scope_ = scope_;
    return other;
  }
  void trace_into(std::vector<Field>* trace) { trace_ = trace; }

  [[noreturn]] void fail(const char* code, const char* field, const uint8_t* place,
                         const std::string& text) const {
    throw DecodeError(code, scope_ + field, offset_of(place), text);
  }

  // `bytes` more bytes; any count up to 2^63 - 1 may be asked for. `value`: see Field.
  const uint8_t* take(int64_t bytes, const char* field, int64_t value = -1) {
    const bool enough = bytes <= left();
    record(field, enough ? bytes : left(), value, enough ? 0 : bytes - left());
    if (!enough)
      fail("truncated", field, at_,
           "needs " + std::to_string(bytes) + " bytes, got " + std::to_string(left()) +
               ". Fetch the message again.");
    const uint8_t* place = at_;
    at_ += bytes;
    return place;
  }

  uint8_t byte(const char* field) {
    const uint8_t x = *take(1, field);
    if (trace_ != nullptr) trace_->back().value = x;
    return x;
  }

  uint32_t word(const char* field) {
    uint32_t x;
    std::memcpy(&x, take(4, field, 1), 4);
    return x;
  }

  // A minimal LEB128 number below 2^63.
  int64_t varint(const char* field) {
    constexpr int64_t kLongest = 9;
    const uint8_t* first = at_;
    uint64_t value = 0;
    int64_t length = 0;
    bool more = true;
    for (; more && length < kLongest && length < left(); ++length) {
      value |= static_cast<uint64_t>(first[length] & 0x7f) << (7 * length);
      more = first[length] >= 0x80;
    }
    const bool cut = more && length < kLongest;
    record(field, length, more ? -1 : static_cast<int64_t>(value), cut ? 1 : 0);
    at_ += length;
    if (cut) fail("truncated", field, at_, "needs 1 bytes, got 0. Fetch the message again.");
    if (more) fail("varint", field, first, "must be below 2^63, got more than 9 bytes.");
    if (length > 1 && at_[-1] == 0)
      fail("varint", field, first, "must be minimal, got a zero last byte.");
    return static_cast<int64_t>(value);
  }

 private:
  void record(const char* field, int64_t bytes, int64_t value, int64_t missing) {
    if (trace_ != nullptr && bytes + missing > 0)
      trace_->push_back({scope_ + field, offset_of(at_), bytes, value, missing});
  }

  const uint8_t* begin_;
  const uint8_t* at_;
  const uint8_t* end_;
  std::string scope_;
  std::vector<Field>* trace_ = nullptr;
};

}  // namespace gcext::wire
