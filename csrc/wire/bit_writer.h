// Appends bits to a stream of bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace gcext::wire {

// Appends bits to a stream: the words of one tile after those of the last.
class BitWriter {
 public:
  // `bits` bits of `words`; the bits after them in the last word must be zero.
  void append(const uint64_t* words, int64_t bits, std::vector<uint8_t>* out) {
    for (; bits > 0; bits -= 64, ++words) {
      const int count = static_cast<int>(std::min<int64_t>(bits, 64));
      window_ |= *words << fill_;
      if (fill_ + count < 64) {
        fill_ += count;
        continue;
      }
      flush(8, out);
      window_ = fill_ == 0 ? 0 : *words >> (64 - fill_);
      fill_ += count - 64;
    }
  }

  void finish(std::vector<uint8_t>* out) { flush((fill_ + 7) / 8, out); }

 private:
  void flush(int bytes, std::vector<uint8_t>* out) {
    const auto* first = reinterpret_cast<const uint8_t*>(&window_);
    out->insert(out->end(), first, first + bytes);
  }

  uint64_t window_ = 0;
  int fill_ = 0;
};

}  // namespace gcext::wire
