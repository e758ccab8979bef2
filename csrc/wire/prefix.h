// A prefix code and what it codes, in tiles; docs/wire-format.md, "Prefix code".
//
//   | m varint | section of the m symbols | m lengths | 3 bytes a tile | code words and more bits |
//
// The code is the Huffman code of what occurs, no word longer than 12 bits, by package-merge: one
// for any counts, whatever the order of work. A reader counts what it decodes and makes the code
// again. Words are those of rising (length, symbol), as in deflate; a word's first bit is its
// highest. What follows a word (signs, low bits of a number) is the caller's.
//
// Costs nothing in proportion to the symbols before they are known to be there: each is a bit or
// more.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "frame.h"

namespace gcext::wire {

constexpr int kLongestWord = 12;
constexpr int64_t kMaxAlphabet = int64_t{1} << kLongestWord;
constexpr int64_t kPrefixTile = 4096;  // symbols
constexpr int64_t kSizeBytes = 3;      // of a tile's number of bits

inline int64_t tiles_of(int64_t symbols) {
  return symbols / kPrefixTile + (symbols % kPrefixTile != 0);
}

// The lengths of the words of symbols that occur `count` > 0 times, in the order given: Larmore &
// Hirschberg (1990). At least two of them, at most kMaxAlphabet.
std::vector<uint8_t> word_lengths(const std::vector<int64_t>& count);

// The words of these lengths, their first bit lowest.
std::vector<uint16_t> words_of(const std::vector<uint8_t>& length);

// Takes a prefix code and its stream of `symbols` > 0 symbols below `alphabet`, at most
// kMaxAlphabet. Each is at least 1 bit and at most `most_bits`, sign and low bits included.
// `may_be_none`: m may be 0, and nothing follows.
void take_prefix(Cursor* cursor, int64_t symbols, int64_t alphabet, int64_t most_bits,
                 bool may_be_none, Prefix* prefix);

// 57 bits or more of a stream from bit `at` on; reads 8 bytes (after the stream is the checksum).
inline uint64_t load_bits(const uint8_t* stream, int64_t at) {
  uint64_t x;
  std::memcpy(&x, stream + (at >> 3), 8);
  return x >> (at & 7);
}

// The code of a body, opened: its symbols, their lengths, a table of all windows of bits.
class PrefixReader {
 public:
  // Fails where symbols or lengths break a rule.
  PrefixReader(const Prefix& prefix, const Cursor& cursor);

  // Of the window's first bits: the symbol is entry >> 4, and its word's length entry & 15.
  uint16_t entry(uint64_t window) const { return table_[window & mask_]; }
  uint64_t mask() const { return mask_; }

  struct Tile {
    int64_t n = 0, begin = 0, end = 0;  // symbols; where its bits begin and end
    int64_t number = 0;                 // of the tile
  };
  // Tiles one after the other.
  class Tiles {
   public:
    Tiles(const PrefixReader& code, int64_t first, int64_t last);
    Tile next();  // n = 0 after the last

   private:
    const PrefixReader& code_;
    int64_t tile_ = 0, last_, bit_ = 0;
  };
  int64_t tile_count() const { return tiles_of(prefix_.symbols); }

  // Fails: the symbols of a tile do not take its bits.
  [[noreturn]] void fail_size(int64_t tile) const;

  // Fails unless the lengths are those of a code for these counts, one for each of the alphabet.
  void check_counts(const int64_t* count) const;

  int64_t highest() const { return used_.back(); }

 private:
  const Prefix& prefix_;
  const Cursor& cursor_;
  std::vector<int32_t> used_;
  std::vector<uint8_t> length_;
  std::array<uint16_t, kMaxAlphabet> table_;
  uint64_t mask_ = 0;
};

// Writes bits front to back, from bit `fill` < 8 of the buffer on, with zeros before them; the
// buffer has 8 bytes to spare.
class BitSink {
 public:
  explicit BitSink(uint8_t* out, int fill = 0) : first_(out), out_(out), fill_(fill) {}

  // At most 56 bits, with zeros above them.
  void put(uint64_t bits, int count) {
    window_ |= bits << fill_;
    fill_ += count;
    std::memcpy(out_, &window_, 8);
    out_ += fill_ >> 3;
    window_ >>= fill_ & ~7;
    fill_ &= 7;
  }
  int64_t bits() const { return 8 * (out_ - first_) + fill_; }  // those before them included

 private:
  uint8_t *first_, *out_;
  uint64_t window_ = 0;
  int fill_;
};

// A prefix code made of counts, and its stream, written in parts: ranges of tiles.
class PrefixWriter {
 public:
  // `symbols`: of the stream.
  PrefixWriter(const std::vector<int64_t>& count, int64_t symbols);

  struct Word {
    uint16_t bits = 0;
    uint8_t length = 0;
  };
  // One for each of the alphabet; of those that do not occur, none.
  const std::vector<Word>& words() const { return words_; }

  // The bits of the words of symbols that occur so often.
  int64_t word_bits(const std::vector<int64_t>& count) const;

  // Cuts the stream into parts of so many bits, words and all that follows them.
  void cut(const std::vector<int64_t>& bits);
  // What writes a part, from its first bit to its last; each part may be another thread's.
  BitSink open(int64_t part);
  // Notes how many bits a tile has.
  void set_size(int64_t tile, int64_t bits);

  void put(Message* message);

 private:
  struct Part {
    int64_t begin = 0, bits = 0;
    std::unique_ptr<uint8_t[]> bytes;  // from the one on that has bit `begin`
  };
  std::vector<Word> words_;
  std::vector<int32_t> used_;
  std::vector<uint8_t> lengths_, sizes_;  // 4 bits each; 3 bytes a tile
  std::vector<Part> parts_;
};

}  // namespace gcext::wire
