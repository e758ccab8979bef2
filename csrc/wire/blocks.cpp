#include "blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "../bits.h"
#include "../dct.h"
#include "bit_writer.h"
#include "dct.h"
#include "fields.h"

namespace gcext::wire {
namespace {

constexpr uint64_t kMostSets = uint64_t{1} << 62;
constexpr int kMostOfBlock = 8;

// n choose j. A product of five places of a block fits 64 bits; of more, no step is above the sets
// that a code may have, times n.
uint64_t choose(int64_t n, int64_t j) {
  if (n < j) return 0;
  if (j <= 5) {
    constexpr uint64_t kFactorial[] = {1, 1, 2, 6, 24, 120};
    uint64_t ways = 1;
    for (int64_t i = 0; i < j; ++i) ways *= static_cast<uint64_t>(n - i);
    return ways / kFactorial[j];
  }
  unsigned __int128 ways = 1;
  for (int64_t i = 0; i < j; ++i)
    ways = ways * static_cast<uint64_t>(n - i) / static_cast<uint64_t>(i + 1);
  return static_cast<uint64_t>(ways);
}

// The numbers of the sets of at most `most` of `size` elements: by their count, then by the place
// of their last element, of the one before, and so on.
class Sets {
 public:
  Sets(int64_t size, int64_t most) : size_(size), most_(std::min(size, most)) {
    if (most > kMostOfBlock) return;
    unsigned __int128 total = 0, ways = 1;
    for (int64_t j = 0; j <= most_ && total <= kMostSets; ++j) {
      first_[j] = static_cast<uint64_t>(total);
      total += ways;
      ways = ways * static_cast<uint64_t>(size - j) / static_cast<uint64_t>(j + 1);
    }
    if (total > kMostSets) return;
    total_ = static_cast<uint64_t>(total);
    bits_ = 64 - __builtin_clzll((total_ - 1) | 1);
  }

  uint64_t total() const { return total_; }  // 0: too many
  int bits() const { return bits_; }         // of a number

  int64_t count(uint64_t number) const {
    int64_t count = most_;
    while (first_[count] > number) --count;
    return count;
  }

  // The `count` places of the set with this number, rising.
  void open(uint64_t number, int64_t count, int64_t* place) const {
    uint64_t rest = number - first_[count];
    for (int64_t j = count, below = size_; j > 0; --j) {
      below = last_place(rest, j, below);
      rest -= choose(below, j);
      place[j - 1] = below;
    }
  }

  template <class Index>
  uint64_t number(const Index* index, int64_t count, int64_t from) const {
    uint64_t number = first_[count];
    for (int64_t j = 0; j < count; ++j)
      number += choose(static_cast<int64_t>(index[j]) - from, j + 1);
    return number;
  }

 private:
  int64_t size_, most_;
  uint64_t total_ = 0;
  int bits_ = 0;
  uint64_t first_[kMostOfBlock + 1] = {};  // number of the first set of each count

  // The greatest n below `below` of which `rest` or fewer sets of j come before. A root is near it.
  static int64_t last_place(uint64_t rest, int64_t j, int64_t below) {
    if (j == 1) return static_cast<int64_t>(rest);
    double product = static_cast<double>(rest);
    for (int64_t i = 2; i <= j; ++i) product *= static_cast<double>(i);
    const double near = std::pow(product, 1 / static_cast<double>(j));
    int64_t n = std::min(static_cast<int64_t>(near) + j / 2, below - 1);
    while (n + 1 < below && choose(n + 1, j) <= rest) ++n;
    while (choose(n, j) > rest) --n;
    return std::max(n, j - 1);
  }
};

// The blocks of a matrix and the numbers of their sets. All parts of a dimension are equally long,
// or some longer by one: so there are four sizes at most.
class Code {
 public:
  Code(const Matrix& view, int64_t edge, int64_t most)
      : grid_(view.rows, view.cols, edge),
        sets_{{Sets(size(0, 0), most), Sets(size(0, 1), most)},
              {Sets(size(1, 0), most), Sets(size(1, 1), most)}} {}

  int64_t blocks() const { return grid_.blocks(); }
  DctBlock block(int64_t index) const { return grid_.block(index); }
  const Sets& sets(const DctBlock& block) const { return sets_[block.long_h][block.long_w]; }

  // Whether every set has a number: those of the largest blocks.
  bool fits() const { return sets_[grid_.rows.longer > 0][grid_.cols.longer > 0].total() > 0; }

  // Of all words: no more than there are elements, as a block's sets are at most those of all its
  // elements.
  int64_t bits() const {
    int64_t bits = 0;
    for (const bool tall : {false, true})
      for (const bool wide : {false, true})
        bits += parts(grid_.rows, tall) * parts(grid_.cols, wide) * sets_[tall][wide].bits();
    return bits;
  }

 private:
  DctGrid grid_;
  Sets sets_[2][2];  // by whether the block is a longer part of its rows, and of its columns

  static int64_t parts(const DctCuts& cuts, bool longer) {
    return longer ? cuts.longer : cuts.count - cuts.longer;
  }
  int64_t size(int tall, int wide) const {
    return (grid_.rows.size + tall) * (grid_.cols.size + wide);
  }
};

// `bits` bits from bit `from` of the words, at most 62. Reads up to 7 bytes after the last: the
// checksum is there.
uint64_t word_at(const uint8_t* words, int64_t from, int bits) {
  const uint8_t* const place = words + (from >> 3);
  const int shift = static_cast<int>(from & 7);
  uint64_t word;
  std::memcpy(&word, place, sizeof word);
  word >>= shift;
  if (shift + bits > 64) word |= static_cast<uint64_t>(place[8]) << (64 - shift);
  return word & ((uint64_t{1} << bits) - 1);
}

template <class Index>
void check_indices(const Index* index, int64_t k, int64_t limit) {
  int64_t previous = -1;
  for (int64_t i = 0; i < k; ++i) {
    const auto own = static_cast<int64_t>(index[i]);
    if (own <= previous || own >= limit)
      throw PackError("pack: index must rise strictly and stay below the number of elements " +
                      std::to_string(limit) + ", got " + std::to_string(own) + " at place " +
                      std::to_string(i) + ". Sort it and drop repeated entries.");
    previous = own;
  }
}

}  // namespace

bool fits_blocks(const Matrix& view, int64_t edge, int64_t most) {
  return Code(view, edge, most).fits();
}

void take_blocks(Cursor* cursor, Body* body) {
  if (body->k == 0) return;
  const uint8_t* const place = cursor->at();
  DctFields& dct = body->dct;
  dct.most = cursor->byte("most");
  const Matrix view = dct_view(*body);
  const Code code(view, dct.block, dct.most);
  if (dct.most == 0 || !code.fits())
    cursor->fail("count", "most", place,
                 "must be in [1, 8], and the sets of as many coefficients of a block at most 2^62, "
                 "got " +
                     std::to_string(dct.most) + ".");
  dct.words = take_plane(cursor, code.bits(), "words");
}

void read_blocks(const Body& body, const Cursor& cursor, int32_t* index, int64_t* wide) {
  if (body.k == 0) return;
  const DctFields& dct = body.dct;
  const Code code(dct_view(body), dct.block, dct.most);
  int64_t bit = 0, left = body.k, most = 0, place[kMostOfBlock];
  for (int64_t b = 0; b < code.blocks(); ++b) {
    const DctBlock block = code.block(b);
    const Sets& sets = code.sets(block);
    const uint64_t number = word_at(dct.words, bit, sets.bits());
    const auto fail = [&](const char* error, const std::string& rule) {
      cursor.fail(error, "words", dct.words + (bit >> 3), "word " + std::to_string(b) + rule);
    };
    if (number >= sets.total())
      fail("index", " must be below " + std::to_string(sets.total()) + ", got " +
                        std::to_string(number) + ".");
    const int64_t count = sets.count(number);
    if (count > left)
      fail("k", " must hold at most the " + std::to_string(left) + " that are left of k, got " +
                    std::to_string(count) + ".");
    if (index != nullptr || wide != nullptr) sets.open(number, count, place);
    for (int64_t i = 0; i < count && index != nullptr; ++i)
      *index++ = static_cast<int32_t>(block.number + place[i]);
    for (int64_t i = 0; i < count && wide != nullptr; ++i) *wide++ = block.number + place[i];
    most = std::max(most, count);
    left -= count;
    bit += sets.bits();
  }
  if (left > 0)
    cursor.fail("k", "words", dct.words,
                "must hold k = " + std::to_string(body.k) + " coefficients, got " +
                    std::to_string(body.k - left) + ".");
  if (most < dct.most)
    cursor.fail("count", "most", dct.words - 1,
                "must be the most coefficients of a block, " + std::to_string(most) + ", got " +
                    std::to_string(dct.most) + ".");
}

template <class Index>
void put_blocks(Message* message, const Matrix& view, int64_t edge, const Index* index, int64_t k) {
  check_indices(index, k, view.rows * view.cols);
  if (k == 0) return;
  const DctGrid grid(view.rows, view.cols, edge);
  // Calls each(block, first, count) of each block; its indices are those from `first` on.
  const auto for_each_block = [&](const auto& each) {
    for (int64_t b = 0, first = 0; b < grid.blocks(); ++b) {
      const DctBlock block = grid.block(b);
      const int64_t end = block.number + int64_t{1} * block.h * block.w;
      int64_t count = 0;
      while (first + count < k && static_cast<int64_t>(index[first + count]) < end) ++count;
      each(block, index + first, count);
      first += count;
    }
  };
  int64_t most = 0;
  for_each_block(
      [&](const DctBlock&, const Index*, int64_t count) { most = std::max(most, count); });
  const Code code(view, edge, most);
  if (!code.fits())
    throw PackError(
        "pack: by block, at most 8 coefficients of a block are packed, and their sets must be at "
        "most 2^62, got " +
        std::to_string(most) + " of a block of up to " + std::to_string(grid.largest()) +
        ". Pack without by_block.");
  message->byte(static_cast<uint8_t>(most));
  std::vector<uint8_t> words;
  BitWriter writer;
  for_each_block([&](const DctBlock& block, const Index* first, int64_t count) {
    const Sets& sets = code.sets(block);
    const uint64_t number = sets.number(first, count, block.number);
    writer.append(&number, sets.bits(), &words);
  });
  writer.finish(&words);
  message->own(std::move(words));
}

template void put_blocks(Message*, const Matrix&, int64_t, const int32_t*, int64_t);
template void put_blocks(Message*, const Matrix&, int64_t, const int64_t*, int64_t);

}  // namespace gcext::wire
