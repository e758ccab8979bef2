// A section: k rising numbers in [0, limit) as Rice tiles, each stream on its own.
//
//   +----------------+------------------------+------------------------+
//   | tile table     | remainders             | unary parts            |
//   | 3 bytes a tile | k values, tile by tile | k + zeros bits         |
//   +----------------+------------------------+------------------------+
//   tile = u8 b, u16 zeros (little-endian). Tile t holds numbers t*kTile .. min((t+1)*kTile, k) -
//   1; its remainders begin at byte (kTile/8) * (b_0 + .. + b_{t-1}), its unary part at bit t*kTile
//   + zeros_0 + .. + zeros_{t-1}. Each stream is padded with zero bits to a byte.
//
// The numbers are the indices of a packet, or the places of a merged packet's members.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../rice.h"
#include "bit_writer.h"
#include "cursor.h"

namespace gcext::wire {

constexpr int64_t kTileBytes = 3;

inline int64_t tile_count(int64_t k) { return k / kTile + (k % kTile != 0); }

// A section laid over the bytes of a message; it owns nothing. The names are those of its fields
// in errors.
struct Section {
  const char* tiles_name = "tiles";
  const char* remainders_name = "remainders";
  const char* unary_name = "unary";
  int64_t k = 0;
  const uint8_t* table = nullptr;
  const uint8_t* remainders = nullptr;
  const uint8_t* unary = nullptr;
  int64_t remainder_bytes = 0;
  int64_t unary_bits = 0;

  RiceTile tile(int64_t t) const;
};

// Takes a section of k numbers off the cursor: the table's fields are in range, the streams are
// there and padded with zeros; the tiles stay closed. Costs no memory.
void take_section(Cursor* cursor, int64_t k, Section* section);

// One tile at a time: t-th tile to index[0 .. n), in order.
class SectionReader {
 public:
  SectionReader(const Section& section, int64_t limit, const Cursor& cursor)
      : section_(section), limit_(limit), cursor_(cursor), tiles_(tile_count(section.k)) {}
  // Of the tiles [first, last), as if they were the first ones.
  SectionReader(const Section& section, int64_t limit, const Cursor& cursor, int64_t first,
                int64_t last);

  // Reads the next tile and returns n, 0 at the end.
  template <class Index>
  int64_t next(Index* index);

 private:
  const Section& section_;
  const int64_t limit_;
  const Cursor& cursor_;
  const int64_t tiles_;
  int64_t tile_ = 0, remainder_ = 0, unary_ = 0, previous_ = -1;
};

// Reads all of a section, on several threads where it is long. Fails as a SectionReader does.
template <class Index>
void read_section(const Section& section, int64_t limit, const Cursor& cursor, Index* index);

// The same, keeping nothing.
void check_section(const Section& section, int64_t limit, const Cursor& cursor);

// A section ready to be written: its three streams.
struct PackedSection {
  std::vector<uint8_t> table;
  std::vector<uint8_t> remainders;
  std::vector<uint8_t> unary;
};

// A section made a tile at a time: kTile numbers each, the last one fewer. Throws PackError where
// the numbers do not rise strictly within [0, limit).
class SectionWriter {
 public:
  SectionWriter() = default;
  // Of what comes after so many numbers, the last of which is `previous`.
  SectionWriter(int64_t count, int64_t previous) : count_(count), previous_(previous) {}

  template <class Index>
  void append(const Index* tile_of_numbers, int64_t n);
  // Appends what another one, which goes on behind this one, was given.
  void append(SectionWriter other);
  PackedSection finish(int64_t limit);

 private:
  PackedSection packed_;
  BitWriter unary_;
  int64_t unary_bits_ = 0, count_ = 0, previous_ = -1;
};

// On several threads where it is long. Throws PackError where the numbers do not rise strictly
// within [0, limit).
template <class Index>
PackedSection pack_section(const Index* index, int64_t k, int64_t limit);

}  // namespace gcext::wire
