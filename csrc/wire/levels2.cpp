#include "levels2.h"

#include <memory>
#include <string>

namespace gcext::wire {
namespace {

// The class of a number and its low bits.
struct Class {
  int number, low;  // low: how many bits
};

Class class_of(uint64_t x) {
  if (x < 2) return {static_cast<int>(x), 0};
  const int e = 63 - __builtin_clzll(x);
  return {2 * e + static_cast<int>(x >> (e - 1) & 1), e - 1};
}

// Of small numbers, which most are, without a branch that depends on them.
struct SmallClasses {
  static constexpr uint64_t kCount = 64;
  Class of[kCount];
  SmallClasses() {
    for (uint64_t x = 0; x < kCount; ++x) of[x] = class_of(x);
  }
};

inline Class find_class(const SmallClasses& small, uint64_t x) {
  return x < SmallClasses::kCount ? small.of[x] : class_of(x);
}

int low_bits(int number) { return number < 2 ? 0 : number / 2 - 1; }

// The number of a class with all low bits 0.
uint64_t least_of(int number) {
  return number < 2 ? static_cast<uint64_t>(number)
                    : static_cast<uint64_t>(2 + number % 2) << low_bits(number);
}

uint64_t low_of(uint64_t x, int bits) { return x & ((uint64_t{1} << bits) - 1); }

// What a symbol stands for.
struct Kind {
  uint64_t gap;
  int32_t less_one;  // of the magnitude
  uint8_t gap_low, less_one_low;
};

std::vector<Kind> all_kinds() {
  std::vector<Kind> kinds;
  for (int gap = 0; gap < kGapClasses; ++gap) {
    for (int magnitude = 0; magnitude < kMagnitudeClasses; ++magnitude)
      kinds.push_back({least_of(gap), static_cast<int32_t>(least_of(magnitude)),
                       static_cast<uint8_t>(low_bits(gap)),
                       static_cast<uint8_t>(low_bits(magnitude))});
  }
  return kinds;
}

// By symbol.
const Kind* kinds_of_all() {
  static const std::vector<Kind> kinds = all_kinds();
  return kinds.data();
}

// Reads numbers of the runs before places that are sent, and levels: of several tiles side by side,
// as each number waits for the last of its tile.
class RunReader {
 public:
  static constexpr int kAtOnce = 4;

  // counts: whether to count how often each symbol occurs.
  RunReader(const Body& body, const Cursor& cursor, bool counts)
      : code_(body.prefix, cursor),
        stream_(body.prefix.stream),
        rows_(std::min<int64_t>(kAtOnce, (body.prefix.symbols - 1) / kPrefixTile + 1)),
        held_(std::min(rows_ * kPrefixTile, body.prefix.symbols)),
        table_(static_cast<size_t>(code_.mask() + 1)),
        gap_(new uint64_t[static_cast<size_t>(held_)]),
        level_(new int32_t[static_cast<size_t>(held_)]),
        count_(counts ? static_cast<size_t>(rows_ * kRunSymbols) : 0) {
    for (uint64_t window = 0; window <= code_.mask(); ++window) {
      const uint16_t entry = code_.entry(window);
      const auto symbol = static_cast<uint16_t>(entry >> 4);
      const auto word = static_cast<uint8_t>(entry & 15);
      const Kind& kind = kinds_[symbol];
      table_[window] = {symbol, word,
                        static_cast<uint8_t>(word + kind.gap_low + kind.less_one_low + 1)};
    }
  }

  // Calls visit(gap, level, n) for each tile, in order.
  template <class Visit>
  void read(const Visit& visit) {
    for (;;) {
      PrefixReader::Tile tiles[kAtOnce];
      int count = 0;
      while (count < kAtOnce && (tiles[count] = code_.next()).n > 0) ++count;
      if (count == 0) return;
      const bool together =
          count == kAtOnce && tiles[kAtOnce - 1].n == kPrefixTile && read_together(tiles);
      for (int t = 0; t < count; ++t) {
        if (!together) read_one(tiles[t], t);
        visit(gap_.get() + t * kPrefixTile, level_.get() + t * kPrefixTile, tiles[t].n);
      }
    }
  }

  // Fails unless the code is that of what was counted.
  void check_counts() {
    for (int64_t t = 1; t < rows_; ++t) {
      for (int64_t i = 0; i < kRunSymbols; ++i)
        count_[static_cast<size_t>(i)] += count_[static_cast<size_t>(t * kRunSymbols + i)];
    }
    code_.check_counts(count_.data());
  }

 private:
  struct Entry {
    uint16_t symbol;
    uint8_t word, all;  // bits: of the word, and of all that belongs to it
  };

  // What reading a number takes, by value: no store can change it.
  struct View {
    const uint8_t* stream;
    const Entry* table;
    const Kind* kinds;
    uint64_t mask;
    uint64_t* gap;
    int32_t* level;
    int64_t* count;  // or nullptr

    // Number i of tile t, from bit `at` on; returns where the next one begins.
    template <bool kCount>
    int64_t one(int64_t at, int64_t end, int t, int64_t i) const {
      uint64_t window = load_bits(stream, at);
      const Entry entry = table[window & mask];
      const Kind kind = kinds[entry.symbol];
      if (kCount) ++count[t * kRunSymbols + entry.symbol];
      uint64_t low = 0;
      if (entry.all <= 57) {
        window >>= entry.word;
        low = low_of(window, kind.gap_low);
        window >>= kind.gap_low;
      } else {  // the gap's bits alone, in two parts
        int64_t bit = at + entry.word;
        for (int done = 0; done < kind.gap_low; done += 32) {
          const int part = std::min(32, kind.gap_low - done);
          if (bit >= end) return end + 1;
          low |= low_of(load_bits(stream, bit), part) << done;
          bit += part;
        }
        if (bit >= end) return end + 1;
        window = load_bits(stream, bit);
      }
      gap[t * kPrefixTile + i] = kind.gap + low;
      const auto magnitude = static_cast<int32_t>(
          kind.less_one + 1 + static_cast<int32_t>(low_of(window, kind.less_one_low)));
      const int32_t minus = -static_cast<int32_t>(window >> kind.less_one_low & 1);
      level[t * kPrefixTile + i] = (magnitude ^ minus) - minus;
      return at + entry.all;
    }
  };

  View view() {
    return {stream_,
            table_.data(),
            kinds_,
            code_.mask(),
            gap_.get(),
            level_.get(),
            count_.empty() ? nullptr : count_.data()};
  }

  // Whole tiles. False where one of them is wrong, which read_one finds again.
  bool read_together(const PrefixReader::Tile* tiles) {
    return count_.empty() ? read_whole<false>(tiles) : read_whole<true>(tiles);
  }

  template <bool kCount>
  bool read_whole(const PrefixReader::Tile* tiles) {
    const View own = view();
    int64_t at[kAtOnce], end[kAtOnce];
    for (int t = 0; t < kAtOnce; ++t) {
      at[t] = tiles[t].begin;
      end[t] = tiles[t].end;
    }
    for (int64_t i = 0; i < kPrefixTile; ++i) {
      bool over = false;
      for (int t = 0; t < kAtOnce; ++t) over |= at[t] >= end[t];
      if (over) return false;
      for (int t = 0; t < kAtOnce; ++t) at[t] = own.one<kCount>(at[t], end[t], t, i);
    }
    return std::equal(at, at + kAtOnce, end);
  }

  void read_one(const PrefixReader::Tile& tile, int t) {
    const View own = view();
    int64_t at = tile.begin, i = 0;
    for (; i < tile.n && at < tile.end; ++i)
      at = own.count == nullptr ? own.one<false>(at, tile.end, t, i)
                                : own.one<true>(at, tile.end, t, i);
    code_.check_end(tile, i < tile.n ? tile.end + 1 : at);
  }

  PrefixReader code_;
  const uint8_t* const stream_;
  const Kind* const kinds_ = kinds_of_all();
  // Of a message of few symbols no more than these: a row for each of the tiles side by side.
  const int64_t rows_, held_;
  std::vector<Entry> table_;  // by window
  const std::unique_ptr<uint64_t[]> gap_;
  const std::unique_ptr<int32_t[]> level_;
  std::vector<int64_t> count_;
};

// Calls visit(at, level, n) for each tile of the levels, checked; counts: whether the code is to be
// checked, too.
template <class Index, class Visit>
void walk(const Body& body, const Cursor& cursor, bool counts, const Visit& visit) {
  const LevelFields& fields = body.levels;
  if (fields.places == 0) return;
  RunReader reader(body, cursor, counts);
  NormAt norm_at(fields.bucket, fields.norms);
  const bool zero_norms = any_zero(fields.norm, fields.norms);
  Index places[kPrefixTile];
  int16_t narrow[kPrefixTile];
  uint64_t next = 0;  // the first place after the last
  const uint8_t* const size = body.prefix.sizes;
  reader.read([&](const uint64_t* gap, const int32_t* level, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t place = next + gap[i];  // below 2^63 both
      if (place >= static_cast<uint64_t>(body.k))
        cursor.fail("index", "stream", size,
                    "a place must be below " + std::to_string(body.k) + ".");
      const int64_t magnitude = level[i] < 0 ? -level[i] : level[i];
      if (zero_norms || magnitude > fields.steps)
        check_level(fields, cursor, magnitude, static_cast<int64_t>(place), &norm_at, "stream",
                    size);
      places[i] = static_cast<Index>(place);
      narrow[i] = static_cast<int16_t>(level[i]);
      next = place + 1;
    }
    visit(places, narrow, n);
  });
  if (counts) reader.check_counts();
}

}  // namespace

void take_levels2(Cursor* cursor, Body* body) {
  take_norms(cursor, body);
  if (body->levels.places > 0)
    take_prefix(cursor, body->levels.places, kRunSymbols, kMostRunBits, false, &body->prefix);
}

void check_levels2(const Body& body, const Cursor& cursor) {
  const auto none = [](const auto*, const int16_t*, int64_t) {};
  body.narrow() ? walk<int32_t>(body, cursor, true, none) : walk<int64_t>(body, cursor, true, none);
}

template <class Index>
void read_levels2(const Body& body, const Cursor& cursor, Index* at, int16_t* level) {
  walk<Index>(body, cursor, false, [&](const Index* places, const int16_t* tile, int64_t n) {
    at = std::copy(places, places + n, at);
    level = std::copy(tile, tile + n, level);
  });
}

template <class Index>
void put_levels2(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                 int64_t places) {
  check_norms("levels2", k, arrays, places);
  const SmallClasses small;
  // Of every other place: a counter waits for the last count of its own.
  std::vector<int64_t> count(kRunSymbols), others(kRunSymbols);
  int64_t more_bits = 0, next = 0;
  std::vector<uint16_t> symbol(static_cast<size_t>(places));
  for (int64_t i = 0; i < places; ++i) {
    const auto place = static_cast<int64_t>(at[i]);
    if (place < next || place >= k)
      throw PackError("pack: places must rise strictly below " + std::to_string(k) + ", got " +
                      std::to_string(place) + ".");
    const Class gap = find_class(small, static_cast<uint64_t>(place - next));
    const Class less_one =
        find_class(small, static_cast<uint64_t>(magnitude_of(arrays.level[i], arrays.steps) - 1));
    const auto own = static_cast<uint16_t>(kMagnitudeClasses * gap.number + less_one.number);
    symbol[static_cast<size_t>(i)] = own;
    ++(i % 2 == 0 ? count : others)[own];
    more_bits += gap.low + less_one.low + 1;
    next = place + 1;
  }
  for (size_t which = 0; which < count.size(); ++which) count[which] += others[which];
  check_norms_at(arrays, at, places);
  put_norms(message, arrays, places);
  if (places == 0) return;
  PrefixWriter writer(count, more_bits);
  BitSink sink = writer.sink();
  const Kind* const kinds = kinds_of_all();
  next = 0;
  for (int64_t i = 0; i < places; ++i) {
    const uint16_t which = symbol[static_cast<size_t>(i)];
    const Kind& kind = kinds[which];
    const PrefixWriter::Word word = writer.words()[which];
    const auto place = static_cast<int64_t>(at[i]);
    const int level = arrays.level[i];
    const uint64_t gap = low_of(static_cast<uint64_t>(place - next), kind.gap_low);
    const uint64_t less_one =
        low_of(static_cast<uint64_t>((level < 0 ? -level : level) - 1), kind.less_one_low);
    next = place + 1;
    uint64_t bits = word.bits;
    int length = word.length;
    if (kind.gap_low > 28) {  // 56 bits at a time
      sink.put(bits, length);
      sink.put(low_of(gap, 28), 28);
      bits = gap >> 28;
      length = kind.gap_low - 28;
      if (length > 28) {
        sink.put(low_of(bits, 28), 28);
        bits >>= 28;
        length -= 28;
      }
    } else {
      bits |= gap << length;
      length += kind.gap_low;
    }
    bits |= less_one << length;
    length += kind.less_one_low;
    bits |= static_cast<uint64_t>(level < 0) << length;
    sink.put(bits, length + 1);
    if ((i + 1) % kPrefixTile == 0 || i + 1 == places) writer.end_tile(sink);
  }
  writer.put(message);
}

template void read_levels2(const Body&, const Cursor&, int32_t*, int16_t*);
template void read_levels2(const Body&, const Cursor&, int64_t*, int16_t*);
template void put_levels2(Message*, int64_t, const LevelArrays&, const int32_t*, int64_t);
template void put_levels2(Message*, int64_t, const LevelArrays&, const int64_t*, int64_t);

}  // namespace gcext::wire
