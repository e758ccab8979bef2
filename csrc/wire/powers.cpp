#include "powers.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "fields.h"
#include "windows.h"

namespace gcext::wire {
namespace {

// Neighbours are often equal, and a count waits for its last change: so there are several.
constexpr int64_t kCounts = 4;

bool is_scale(uint32_t word) { return word > 0 && word < kInfinity; }

// Whether the power of a symbol, times the scale, rounds to a float32.
float value_of(float scale, int64_t symbol) {
  const int power = static_cast<int>(symbol) + kPowerOfSymbol0;
  return static_cast<float>(std::ldexp(static_cast<double>(scale), power));
}

bool is_finite(float scale, int64_t symbol) { return std::isfinite(value_of(scale, symbol)); }

// The powers that a window begins with, none where the first takes more bits.
struct Entry {
  int16_t power[kPerWindow];
  uint8_t bits, count;
};

// A code of powers, opened.
class PowerCode {
 public:
  PowerCode(const Body& body, const Cursor& cursor)
      : prefix_(body.prefix, cursor),
        stream_(body.prefix.stream),
        windows_(by_windows(body.prefix.symbols) ? kWindows : 0),
        parts_(body.prefix.symbols) {
    for (uint64_t window = 0; window < windows_; ++window) {
      Entry& entry = table_[window];
      entry = {};
      while (entry.count < kPerWindow) {
        int16_t power;
        const int own = first_of(window >> entry.bits, &power);
        if (own == 0 || entry.bits + own > kWindowBits) break;
        entry.power[entry.count++] = power;
        entry.bits = static_cast<uint8_t>(entry.bits + own);
      }
    }
  }

  const PrefixReader& prefix() const { return prefix_; }
  const TileParts& parts() const { return parts_; }
  uint64_t windows() const { return windows_; }  // 0: powers are to be read one by one
  const Entry& entry(uint64_t window) const { return table_[window % kWindows]; }

  // The next power of a tile, and where the one after it begins.
  int16_t read(OpenTile* tile) const {
    int16_t power;
    tile->at += first_of(load_bits(stream_, tile->at), &power);
    return power;
  }

  // Reads a part; calls visit(tile) for each, and fails at the first that is wrong.
  template <class Symbols, class Visit>
  void read_part(int64_t part, Symbols* symbols, const Visit& visit) const {
    wire::read_part(prefix_, stream_, windows_ > 0, parts_, part, symbols,
                    [&](const OpenTile& tile) {
                      if (!tile.is_right()) prefix_.fail_size(tile.number);
                      visit(tile);
                    });
  }

 private:
  PrefixReader prefix_;
  const uint8_t* const stream_;
  const uint64_t windows_;
  const TileParts parts_;
  Entry table_[kWindows];

  // The first power, and its bits.
  int first_of(uint64_t window, int16_t* power) const {
    const uint16_t entry = prefix_.entry(window);
    const int word = entry & 15, symbol = entry >> 4;
    const bool minus = symbol != 0 && (window >> word & 1) != 0;
    *power = static_cast<int16_t>(minus ? -symbol : symbol);
    return word + (symbol != 0);
  }
};

// Counts the symbols of tiles.
class PowerCounter {
 public:
  explicit PowerCounter(const PowerCode& code) : code_(code) {}

  void add_to(int64_t* count) const {
    for (int64_t symbol = 0; symbol < kPowerSymbols; ++symbol) count[symbol] += counts_[symbol];
    for (uint64_t window = 0; window < code_.windows(); ++window) {
      const Entry& entry = code_.entry(window);
      for (int j = 0; j < entry.count; ++j) count[std::abs(entry.power[j])] += hits_[window];
    }
  }

  int take(OpenTile* tile, uint64_t window) {
    ++hits_[window % kWindows];
    const Entry& entry = code_.entry(window);
    tile->i += entry.count;
    return entry.bits;
  }

  void one(OpenTile* tile) {
    ++counts_[std::abs(code_.read(tile))];
    ++tile->i;
  }

 private:
  const PowerCode& code_;
  int64_t hits_[kWindows] = {};         // of each window
  int64_t counts_[kPowerSymbols] = {};  // of symbols read one by one
};

// Writes the powers of tiles.
class PowerFiller {
 public:
  PowerFiller(const PowerCode& code, int16_t* to) : code_(code), to_(to) {}

  void skip(int64_t n) { to_ += n; }

  int take(OpenTile* tile, uint64_t window) {
    const Entry& entry = code_.entry(window);
    std::memcpy(to_ + tile->first + tile->i, entry.power, sizeof entry.power);
    tile->i += entry.count;
    return entry.bits;
  }

  void one(OpenTile* tile) { to_[tile->first + tile->i++] = code_.read(tile); }

 private:
  const PowerCode& code_;
  int16_t* to_;
};

}  // namespace

void take_powers(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  const uint32_t word = cursor->word("scale");
  if (!is_scale(word)) cursor->fail("scale", "scale", place, "must be positive and finite.");
  std::memcpy(&body->scale, &word, 4);
  take_prefix(cursor, body->k, kPowerSymbols, kMostPowerBits, true, &body->prefix);
}

void check_powers(const Body& body, const Cursor& cursor) {
  if (body.prefix.kinds == 0) return;
  const PowerCode code(body, cursor);
  if (code.prefix().highest() == 0)
    cursor.fail("code", "lengths", body.prefix.lengths, "must not be those of zeros alone.");
  int64_t count[kPowerSymbols] = {};
  std::mutex mutex;
  run_parts(code.parts().count(), [&](int64_t part) {
    PowerCounter counter(code);
    code.read_part(part, &counter, [](const OpenTile&) {});
    const std::lock_guard<std::mutex> lock(mutex);
    counter.add_to(count);
  });
  code.prefix().check_counts(count);
  if (!is_finite(body.scale, code.prefix().highest()))
    cursor.fail("value", "scale", body.prefix.lengths, "times the highest power must be finite.");
}

float largest_power(const Body& body, const Cursor& cursor) {
  if (body.prefix.kinds == 0) return 0;
  return value_of(body.scale, PrefixReader(body.prefix, cursor).highest());
}

void read_powers(const Body& body, const Cursor& cursor, int16_t* power) {
  if (body.prefix.kinds == 0) return;
  const PowerCode code(body, cursor);
  run_parts(code.parts().count(), [&](int64_t part) {
    PowerFiller filler(code, power + code.parts().symbol(part));
    code.read_part(part, &filler, [&](const OpenTile& tile) { filler.skip(tile.n); });
  });
}

namespace {

constexpr int kMost = static_cast<int>(kPowerSymbols) - 1;

// How often each symbol occurs among some powers, how many have a sign, and the bounds of all;
// where a power is beyond kMost, only the bounds.
struct PowerCounts {
  int lowest = 0, highest = 0;
  std::vector<int64_t> count = std::vector<int64_t>(kPowerSymbols);
  int64_t signs = 0;

  void add(const int16_t* power, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      lowest = std::min<int>(lowest, power[i]);
      highest = std::max<int>(highest, power[i]);
    }
    if (lowest < -kMost || highest > kMost) return;
    int64_t counts[kCounts][2 * kMost + 1] = {};
    for (int64_t i = 0; i < n; ++i) ++counts[i % kCounts][power[i] + kMost];
    for (int i = -kMost; i <= kMost; ++i) {
      int64_t sum = 0;
      for (const auto& each : counts) sum += each[i + kMost];
      count[static_cast<size_t>(std::abs(i))] += sum;
      signs += i != 0 ? sum : 0;
    }
  }
};

struct Word {
  uint32_t bits;
  int32_t length;
};

// Writes a tile's powers; returns their bits. Its own sink stays in registers.
int64_t put_tile(const Word* word_of, const int16_t* power, int64_t n, BitSink* out) {
  BitSink sink = *out;
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const Word a = word_of[power[i]], b = word_of[power[i + 1]], c = word_of[power[i + 2]],
               d = word_of[power[i + 3]];
    const uint64_t first = a.bits | static_cast<uint64_t>(b.bits) << a.length;
    const uint64_t second = c.bits | static_cast<uint64_t>(d.bits) << c.length;
    sink.put(first | second << (a.length + b.length), a.length + b.length + c.length + d.length);
  }
  for (; i < n; ++i) sink.put(word_of[power[i]].bits, word_of[power[i]].length);
  const int64_t bits = sink.bits() - out->bits();
  *out = sink;
  return bits;
}

}  // namespace

void put_powers(Message* message, int64_t k, float scale, const int16_t* power, int64_t powers) {
  if (!is_scale(bits_of(scale)))
    throw PackError("pack: the scale of a powers packet must be positive and finite, got " +
                    std::to_string(scale) + ".");
  if (powers > 0) check_count("powers", "powers, one an element", powers, k);
  const TileParts parts(powers);
  std::vector<PowerCounts> counts(static_cast<size_t>(parts.count()));
  run_parts(parts.count(), [&](int64_t part) {
    const int64_t first = parts.symbol(part);
    counts[static_cast<size_t>(part)].add(power + first, parts.symbol(part + 1) - first);
  });
  PowerCounts all;
  for (const PowerCounts& part : counts) {
    all.lowest = std::min(all.lowest, part.lowest);
    all.highest = std::max(all.highest, part.highest);
    for (size_t i = 0; i < all.count.size(); ++i) all.count[i] += part.count[i];
  }
  if (all.lowest < -kMost || all.highest > kMost)
    throw PackError("pack: powers must be in [-278, 278], got " +
                    std::to_string(all.lowest < -kMost ? all.lowest : all.highest) + ".");
  if (!is_finite(scale, std::max(-all.lowest, all.highest)))
    throw PackError("pack: the highest power times the scale must be finite in float32.");
  message->word(bits_of(scale));
  if (all.lowest == 0 && all.highest == 0) return message->varint(0);
  PrefixWriter writer(all.count, powers);
  std::vector<int64_t> bits;
  for (const PowerCounts& part : counts) bits.push_back(writer.word_bits(part.count) + part.signs);
  writer.cut(bits);
  std::vector<Word> table(2 * kMost + 1);  // of signed powers
  for (int i = -kMost; i <= kMost; ++i) {
    const PrefixWriter::Word word = writer.words()[static_cast<size_t>(std::abs(i))];
    table[static_cast<size_t>(i + kMost)] = {word.bits | (i < 0 ? 1u : 0u) << word.length,
                                             word.length + (i != 0)};
  }
  const Word* const word_of = table.data() + kMost;
  run_parts(parts.count(), [&](int64_t part) {
    BitSink sink = writer.open(part);
    for (int64_t tile = parts.tile(part); tile < parts.tile(part + 1); ++tile) {
      const int64_t from = tile * kPrefixTile, n = std::min(kPrefixTile, powers - from);
      writer.set_size(tile, put_tile(word_of, power + from, n, &sink));
    }
  });
  writer.put(message);
}

}  // namespace gcext::wire
