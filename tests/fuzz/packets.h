// Messages in C++ alone: what the Python seam does around the decoder, without Python.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "random.h"
#include "wire/budget.h"
#include "wire/frame.h"

namespace gcext::fuzz {

// The decoder is given its hash function. Here it is a quick one: a saved message is sealed again
// before it is run, and so it is by the tests in Python, with XXH3.
uint64_t digest(const uint8_t* first, int64_t bytes);

// Magic, version, the body and the checksum.
Bytes sealed(const uint8_t* body, size_t bytes);
void seal(Bytes* message);

// What the decoder makes of a message: code null where it is accepted.
struct Verdict {
  const char* code = nullptr;
  std::string field;
  int64_t offset = 0;
};

// Where the codes of the format are, in one order.
constexpr const char* kErrorCodes[] = {
    "truncated", "magic",  "version", "checksum", "length",  "method", "dtype",  "varint",
    "shape",     "count",  "k",       "scale",    "parts",   "member", "value",  "support",
    "steps",     "bucket", "level",   "polar",    "table",   "width",  "sketch", "rank",
    "edge",      "tile",   "unary",   "index",    "padding", "code",   "expect", "budget"};
constexpr size_t kCodeCount = sizeof kErrorCodes / sizeof *kErrorCodes;
// The place of a code above, kCodeCount for any other text.
size_t place_of(const char* code);

// The cursor of the body, once frame and checksum are right; throws DecodeError.
wire::Cursor open_checked(const Bytes& message);

// As Packet.from_bytes: the verdict on all of a message; where a shape is expected the default
// budget holds. `closed`: as for a device.
Verdict decode(const Bytes& message, const wire::Expectation* expectation = nullptr,
               bool closed = false);

// The same within another budget; spent: what of it an accepted message costs.
Verdict decode_within(const Bytes& message, const wire::Cost& budget,
                      const wire::Expectation* expectation = nullptr, bool closed = false,
                      wire::Cost* spent = nullptr);

// From now on messages are written and read in up to so many parts, the last one first.
void set_parts(int64_t most);

// Arrays that a Message borrows, as long as it lives. Each is exactly as long as it must be, so
// that sanitizers see every step beyond it.
class Arrays {
 public:
  template <class T>
  T* make(int64_t n) {
    const size_t bytes = sizeof(T) * static_cast<size_t>(n);
    held_.emplace_back(bytes);
    return reinterpret_cast<T*>(held_.back().data());
  }
  template <class T>
  T* copy(const uint8_t* from, int64_t n) {
    T* to = make<T>(n);
    if (n > 0) std::memcpy(to, from, sizeof(T) * static_cast<size_t>(n));
    return to;
  }

 private:
  std::deque<std::vector<uint8_t>> held_;
};

// Reads a body's arrays and appends the body that they make.
void put_body(wire::Message* message, const wire::Body& body, const wire::Cursor& cursor,
              Arrays* arrays);

// The message of what an accepted message holds.
Bytes pack_again(const Bytes& message);

Bytes written(const wire::Message& body);

}  // namespace gcext::fuzz
