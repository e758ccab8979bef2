#include "section.h"

#include <cstring>
#include <string>
#include <utility>

#include "../bits.h"
#include "lender.h"

namespace gcext::wire {
namespace {

#ifdef GCEXT_FUZZ_SHORT
constexpr int64_t kTilesOfPart = 1;
#else
constexpr int64_t kTilesOfPart = 64;  // worth a thread
#endif

// `bits` bits from bit `from` of a stream, to words from bit 0; zeros after them. Reads up to 8
// bytes after the stream's last byte (the checksum is there).
void load_bits(const uint8_t* stream, int64_t from, int64_t bits, uint64_t* words) {
  const uint8_t* p = stream + (from >> 3);
  const int shift = static_cast<int>(from & 7);
  const int64_t count = (bits + 63) / 64;
  for (int64_t w = 0; w < count; ++w, p += 8) {
    uint64_t x;
    std::memcpy(&x, p, 8);
    words[w] = shift == 0 ? x : x >> shift | static_cast<uint64_t>(p[8]) << (64 - shift);
  }
  if ((bits & 63) != 0) words[count - 1] &= (uint64_t{1} << (bits & 63)) - 1;
}

}  // namespace

RiceTile Section::tile(int64_t t) const {
  const uint8_t* entry = table + kTileBytes * t;
  return {entry[0], static_cast<uint16_t>(entry[1] | entry[2] << 8)};
}

void take_section(Cursor* cursor, int64_t k, Section* section) {
  section->k = k;
  const int64_t tiles = tile_count(k);
  // Before the product: k is still any number, and the message must hold 3 bytes for each tile.
  if (tiles > cursor->left() / kTileBytes) cursor->take(cursor->left() + 1, section->tiles_name);
  section->table = cursor->take(tiles * kTileBytes, section->tiles_name, k);
  int64_t remainder_bits = 0;
  section->unary_bits = k;
  for (int64_t t = 0; t < tiles; ++t) {
    const RiceTile tile = section->tile(t);
    const int64_t n = std::min(kTile, k - t * kTile);
    if (tile.b > kMaxRice || tile.zeros > 2 * n)
      cursor->fail("tile", section->tiles_name, section->table + kTileBytes * t,
                   "b must be at most " + std::to_string(kMaxRice) + " and zeros at most " +
                       std::to_string(2 * n) + ", got " + std::to_string(tile.b) + " and " +
                       std::to_string(tile.zeros) + ".");
    remainder_bits += n * tile.b;
    section->unary_bits += tile.zeros;
  }
  section->remainder_bytes = (remainder_bits + 7) / 8;
  section->remainders =
      cursor->take(section->remainder_bytes, section->remainders_name, remainder_bits);
  section->unary =
      cursor->take((section->unary_bits + 7) / 8, section->unary_name, section->unary_bits);
  if (!plane_padded(section->remainders, remainder_bits))
    cursor->fail("padding", section->remainders_name, section->unary - 1,
                 "must end with zero bits.");
  if (!plane_padded(section->unary, section->unary_bits))
    cursor->fail("padding", section->unary_name, cursor->at() - 1, "must end with zero bits.");
}

SectionReader::SectionReader(const Section& section, int64_t limit, const Cursor& cursor,
                             int64_t first, int64_t last)
    : section_(section), limit_(limit), cursor_(cursor), tiles_(last), tile_(first) {
  for (int64_t t = 0; t < first; ++t) {
    const RiceTile tile = section.tile(t);
    remainder_ += plane_bytes(kTile, tile.b);
    unary_ += kTile + tile.zeros;
  }
}

template <class Index>
int64_t SectionReader::next(Index* index) {
  if (tile_ >= tiles_) return 0;
  const int64_t n = std::min(kTile, section_.k - tile_ * kTile);
  const RiceTile tile = section_.tile(tile_);
  const int64_t bits = n + tile.zeros, bytes = plane_bytes(n, tile.b);
  const uint8_t* entry = section_.table + kTileBytes * tile_;
  // True of every section taken; asked again because the buffer may be one that others write to.
  if (tile.b > kMaxRice || tile.zeros > 2 * n || remainder_ + bytes > section_.remainder_bytes ||
      unary_ + bits > section_.unary_bits)
    cursor_.fail("tile", section_.tiles_name, entry, "changed while it was read.");
  uint64_t unary[kUnaryWords];
  load_bits(section_.unary, unary_, bits, unary);
  switch (rice_read(tile, n, section_.remainders + remainder_, unary, previous_, limit_, index)) {
    case RiceStatus::ok:
      break;
    case RiceStatus::unary:
      cursor_.fail("unary", section_.unary_name, section_.unary + (unary_ >> 3),
                   "tile " + std::to_string(tile_) + " must end with its one number " +
                       std::to_string(n) + ".");
    case RiceStatus::parameter:
      cursor_.fail("tile", section_.tiles_name, entry,
                   "b must be the shortest code's, got " + std::to_string(tile.b) + ".");
    case RiceStatus::range:
      cursor_.fail(
          "index", section_.tiles_name, entry,
          "tile " + std::to_string(tile_) + " must stay below " + std::to_string(limit_) + ".");
  }
  previous_ = static_cast<int64_t>(index[n - 1]);
  remainder_ += bytes;
  unary_ += bits;
  ++tile_;
  return n;
}

namespace {

// Reads a section in parts, each as if it were the first, and then moves them; to `index`, or where
// that is nullptr nowhere. False where that fails: then a SectionReader finds out why.
template <class Index>
bool read_in_parts(const Section& section, int64_t limit, const Cursor& cursor, int64_t parts,
                   Index* index) {
  const int64_t tiles = tile_count(section.k);
  const auto first = [&](int64_t part) { return tiles * part / parts; };
  std::vector<uint64_t> reach(static_cast<size_t>(parts));
  try {
    run_parts(parts, [&](int64_t part) {
      SectionReader reader(section, limit, cursor, first(part), first(part + 1));
      Index scratch[kTile];
      Index* to = index == nullptr ? scratch : index + first(part) * kTile;
      uint64_t& own = reach[static_cast<size_t>(part)];
      while (const int64_t n = reader.next(to)) {
        own = static_cast<uint64_t>(to[n - 1]) + 1;
        if (index != nullptr) to += n;
      }
    });
  } catch (const DecodeError&) {
    return false;
  }
  return join_parts(
      std::move(reach), static_cast<uint64_t>(limit),
      [&](int64_t part) { return std::min(first(part) * kTile, section.k); }, index);
}

template <class Index>
void check_numbers(const Section& section, int64_t limit, const Cursor& cursor) {
  const int64_t parts = part_count(tile_count(section.k), kTilesOfPart);
  if (parts > 1 && read_in_parts<Index>(section, limit, cursor, parts, nullptr)) return;
  SectionReader reader(section, limit, cursor);
  Index tile[kTile];
  while (reader.next(tile) > 0) {
  }
}

}  // namespace

template <class Index>
void read_section(const Section& section, int64_t limit, const Cursor& cursor, Index* index) {
  const int64_t parts = part_count(tile_count(section.k), kTilesOfPart);
  if (parts > 1 && read_in_parts(section, limit, cursor, parts, index)) return;
  SectionReader reader(section, limit, cursor);
  while (const int64_t n = reader.next(index)) index += n;
}

void check_section(const Section& section, int64_t limit, const Cursor& cursor) {
  limit <= INT32_MAX ? check_numbers<int32_t>(section, limit, cursor)
                     : check_numbers<int64_t>(section, limit, cursor);
}

template <class Index>
void SectionWriter::append(const Index* tile_of_numbers, int64_t n) {
  Gaps gaps;
  uint64_t unary[kUnaryWords];
  if (!rice_gaps(tile_of_numbers, n, previous_, &gaps))
    throw PackError(
        "pack: index must rise strictly from 0, got a fall or a repetition among places " +
        std::to_string(count_) + " to " + std::to_string(count_ + n - 1) +
        ". Sort it and drop repeated entries.");
  previous_ = static_cast<int64_t>(tile_of_numbers[n - 1]);
  count_ += n;
  const RiceTile tile = rice_choose(gaps);
  const size_t used = packed_.remainders.size();
  packed_.remainders.resize(used + static_cast<size_t>(plane_bytes(n, tile.b)));
  rice_write(gaps, tile, packed_.remainders.data() + used, unary);
  unary_.append(unary, n + tile.zeros, &packed_.unary);
  unary_bits_ += n + tile.zeros;
  packed_.table.push_back(tile.b);
  packed_.table.push_back(static_cast<uint8_t>(tile.zeros));
  packed_.table.push_back(static_cast<uint8_t>(tile.zeros >> 8));
}

void SectionWriter::append(SectionWriter other) {
  other.unary_.finish(&other.packed_.unary);
  packed_.table.insert(packed_.table.end(), other.packed_.table.begin(), other.packed_.table.end());
  packed_.remainders.insert(packed_.remainders.end(), other.packed_.remainders.begin(),
                            other.packed_.remainders.end());
  for (int64_t bit = 0; bit < other.unary_bits_; bit += 64) {
    const int64_t bits = std::min<int64_t>(64, other.unary_bits_ - bit);
    uint64_t word = 0;
    std::memcpy(&word, other.packed_.unary.data() + bit / 8, static_cast<size_t>((bits + 7) / 8));
    unary_.append(&word, bits, &packed_.unary);
  }
  unary_bits_ += other.unary_bits_;
  count_ = other.count_;
  previous_ = other.previous_;
}

PackedSection SectionWriter::finish(int64_t limit) {
  if (previous_ >= limit)
    throw PackError("pack: index must be below the number of elements " + std::to_string(limit) +
                    ", got " + std::to_string(previous_) + ". Check the shape.");
  unary_.finish(&packed_.unary);
  return std::move(packed_);
}

template <class Index>
PackedSection pack_section(const Index* index, int64_t k, int64_t limit) {
  const int64_t tiles = tile_count(k), parts = part_count(tiles, kTilesOfPart);
  std::vector<SectionWriter> writers(static_cast<size_t>(parts));
  run_parts(parts, [&](int64_t part) {
    const int64_t first = tiles * part / parts * kTile,
                  last = std::min(tiles * (part + 1) / parts * kTile, k);
    SectionWriter writer(first, first == 0 ? -1 : static_cast<int64_t>(index[first - 1]));
    for (int64_t i = first; i < last; i += kTile)
      writer.append(index + i, std::min(kTile, last - i));
    writers[static_cast<size_t>(part)] = std::move(writer);
  });
  for (size_t part = 1; part < writers.size(); ++part) writers[0].append(std::move(writers[part]));
  return writers[0].finish(limit);
}

template int64_t SectionReader::next(int32_t*);
template int64_t SectionReader::next(int64_t*);
template void read_section(const Section&, int64_t, const Cursor&, int32_t*);
template void read_section(const Section&, int64_t, const Cursor&, int64_t*);
template void SectionWriter::append(const int32_t*, int64_t);
template void SectionWriter::append(const int64_t*, int64_t);
template PackedSection pack_section(const int32_t*, int64_t, int64_t);
template PackedSection pack_section(const int64_t*, int64_t, int64_t);

}  // namespace gcext::wire
