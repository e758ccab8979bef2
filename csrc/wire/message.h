// A message while it is written.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "section.h"

namespace gcext::wire {

// Pieces of a message to be written, in order: some owned, some borrowed from the caller's arrays.
class Message {
 public:
  // Small fields are gathered in one piece.
  void byte(uint8_t x) { small().push_back(x); }
  void varint(uint64_t x);
  void word(uint32_t x) { number(x, 4); }
  void number(uint64_t x, int bytes);
  void own(std::vector<uint8_t> piece);
  void own(std::unique_ptr<uint8_t[]> piece, int64_t bytes);
  void own(PackedSection section);
  void borrow(const void* first, int64_t bytes);
  void append(Message other);

  int64_t bytes() const { return bytes_; }
  void write(uint8_t* out) const;

 private:
  struct Piece {
    std::vector<uint8_t> owned;
    std::unique_ptr<uint8_t[]> block;
    const uint8_t* first = nullptr;  // of the block, or what is borrowed; else all is `owned`
    int64_t bytes = 0;
    bool open = false;
  };
  std::vector<uint8_t>& small();

  std::vector<Piece> pieces_;
  int64_t bytes_ = 0;
};

}  // namespace gcext::wire
