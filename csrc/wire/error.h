// The one exception of the packet decoder. Codes and fields are listed in docs/wire-format.md.
#pragma once

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

namespace gcext::wire {

// What is wrong with a message: a stable code, the field, its byte offset in the message, and a
// sentence for people. Never holds payload bytes.
class DecodeError : public std::exception {
 public:
  DecodeError(const char* code, std::string field, int64_t offset, const std::string& text)
      : code(code),
        field(std::move(field)),
        offset(offset),
        message_("from_bytes: " + this->field + " at byte " + std::to_string(offset) + ": " +
                 text) {}

  const char* what() const noexcept override { return message_.c_str(); }

  const char* const code;
  const std::string field;
  const int64_t offset;

 private:
  std::string message_;
};

// What is wrong with the arguments of a pack call; Python sees a ValueError.
class PackError : public std::exception {
 public:
  explicit PackError(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

}  // namespace gcext::wire
