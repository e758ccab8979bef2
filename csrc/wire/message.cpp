#include "message.h"

#include "lender.h"

namespace gcext::wire {

void Message::varint(uint64_t x) {
  for (; x >= 0x80; x >>= 7) byte(static_cast<uint8_t>(x | 0x80));
  byte(static_cast<uint8_t>(x));
}

void Message::number(uint64_t x, int bytes) {
  for (int i = 0; i < bytes; ++i) byte(static_cast<uint8_t>(x >> (8 * i)));
}

std::vector<uint8_t>& Message::small() {
  if (pieces_.empty() || !pieces_.back().open) {
    pieces_.emplace_back();
    pieces_.back().open = true;
  }
  ++bytes_;
  return pieces_.back().owned;
}

void Message::own(std::vector<uint8_t> piece) {
  bytes_ += static_cast<int64_t>(piece.size());
  pieces_.emplace_back();
  pieces_.back().owned = std::move(piece);
}

void Message::own(std::unique_ptr<uint8_t[]> piece, int64_t bytes) {
  borrow(piece.get(), bytes);
  pieces_.back().block = std::move(piece);
}

void Message::own(PackedSection section) {
  own(std::move(section.table));
  own(std::move(section.remainders));
  own(std::move(section.unary));
}

void Message::borrow(const void* first, int64_t bytes) {
  bytes_ += bytes;
  pieces_.emplace_back();
  pieces_.back().first = static_cast<const uint8_t*>(first);
  pieces_.back().bytes = bytes;
}

void Message::append(Message other) {
  bytes_ += other.bytes_;
  for (Piece& piece : other.pieces_) pieces_.push_back(std::move(piece));
}

void Message::write(uint8_t* out) const {
  for (const Piece& piece : pieces_) {
    const bool elsewhere = piece.first != nullptr;
    const int64_t bytes = elsewhere ? piece.bytes : static_cast<int64_t>(piece.owned.size());
    copy_bytes(elsewhere ? piece.first : piece.owned.data(), bytes, out);
    out += bytes;
  }
}

}  // namespace gcext::wire
