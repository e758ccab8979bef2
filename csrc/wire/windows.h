// How tiles of a prefix code are read fast: several side by side, as a symbol waits for the one
// before it in its tile; and by a table of what a window of bits begins with, up to two symbols.
#pragma once

#include <cstdint>

#include "lender.h"
#include "prefix.h"

namespace gcext::wire {

constexpr int kWindowBits = 11;  // a table of 8-byte entries takes half of a first cache
constexpr uint64_t kWindows = uint64_t{1} << kWindowBits;
constexpr int64_t kPerLoad = 4;    // windows: 44 bits of 57
constexpr int64_t kPerWindow = 2;  // symbols, at most
constexpr int kTilesAtOnce = 4;

// A tile while it is read.
struct OpenTile {
  int64_t at = 0, end = 0;  // bits of the stream: of the next symbol, of the tile's end
  int64_t i = 0, n = 0;     // symbols read, and of the tile
  int64_t first = 0;        // where the tile's symbols begin in what they are written to
  int64_t number = 0;       // of the tile

  bool has_more(int64_t symbols) const { return i + symbols <= n && at < end; }
  bool is_right() const { return i == n && at == end; }
};

// Reads tiles. `Symbols` has
//
//   int take(OpenTile*, uint64_t window)  the symbols that the window begins with, by which i
//                                         rises; returns their bits, 0 where there are none
//   void one(OpenTile*)                   the next symbol, whatever its bits: i and at rise
//
template <class Symbols>
class TileReader {
 public:
  TileReader(const uint8_t* stream, bool by_windows, Symbols* symbols)
      : stream_(stream), symbols_(symbols), by_windows_(by_windows) {}

  void read(OpenTile* tiles, int count) {
    constexpr int64_t kMost = kPerLoad * kPerWindow;
    if (count == kTilesAtOnce && by_windows_)
      while (tiles[0].has_more(kMost) && tiles[1].has_more(kMost) && tiles[2].has_more(kMost) &&
             tiles[3].has_more(kMost))
        for (int t = 0; t < kTilesAtOnce; ++t) read_some(&tiles[t]);
    for (int t = 0; t < count; ++t) {
      while (by_windows_ && tiles[t].has_more(kMost)) read_some(&tiles[t]);
      while (tiles[t].has_more(1)) symbols_->one(&tiles[t]);
    }
  }

 private:
  const uint8_t* const stream_;
  Symbols* const symbols_;
  const bool by_windows_;

  // No load begins behind the end of the tile: after that of the last one is the checksum.
  void read_some(OpenTile* tile) {
    uint64_t window = load_bits(stream_, tile->at);
    for (int64_t j = 0; j < kPerLoad; ++j) {
      const int bits = symbols_->take(tile, window);
      if (bits == 0) {
        if (tile->at >= tile->end) return;
        symbols_->one(tile);
        if (tile->at >= tile->end) return;
        window = load_bits(stream_, tile->at);
        continue;
      }
      tile->at += bits;
      window >>= bits;
    }
  }
};

// Whether so many symbols are read by windows: of few, the table would cost more. A fuzzer's are
// few.
#ifdef GCEXT_FUZZ_SHORT
constexpr int64_t kReadOneByOne = 16, kTilesOfPart = 1;
#else
constexpr int64_t kReadOneByOne = kPrefixTile, kTilesOfPart = 4 * kTilesAtOnce;
#endif
inline bool by_windows(int64_t symbols) { return symbols > kReadOneByOne; }

// The tiles of a stream cut into parts, one a thread.
class TileParts {
 public:
  explicit TileParts(int64_t symbols)
      : TileParts(symbols, part_count(tiles_of(symbols), kTilesOfPart)) {}
  TileParts(int64_t symbols, int64_t count)
      : symbols_(symbols), tiles_(tiles_of(symbols)), count_(count) {}

  int64_t count() const { return count_; }
  int64_t symbols() const { return symbols_; }
  // The first tile of a part, or of the one behind the last; and its first symbol.
  int64_t tile(int64_t part) const { return tiles_ * part / count_; }
  int64_t symbol(int64_t part) const { return std::min(tile(part) * kPrefixTile, symbols_); }

 private:
  int64_t symbols_, tiles_, count_;
};

// Reads a part's tiles, each of which it opens and, when it is read, gives to visit(tile), in
// order. Symbols lie one tile after the other, from 0 on in every kTilesAtOnce tiles.
template <class Symbols, class Visit>
void read_part(const PrefixReader& code, const uint8_t* stream, bool by_windows,
               const TileParts& parts, int64_t part, Symbols* symbols, const Visit& visit) {
  TileReader<Symbols> reader(stream, by_windows, symbols);
  PrefixReader::Tiles tiles(code, parts.tile(part), parts.tile(part + 1));
  OpenTile open[kTilesAtOnce];
  for (;;) {
    int count = 0;
    for (int64_t first = 0; count < kTilesAtOnce; ++count) {
      const PrefixReader::Tile next = tiles.next();
      if (next.n == 0) break;
      open[count] = {next.begin, next.end, 0, next.n, first, next.number};
      first += next.n;
    }
    if (count == 0) return;
    reader.read(open, count);
    for (int t = 0; t < count; ++t) visit(open[t]);
  }
}

}  // namespace gcext::wire
