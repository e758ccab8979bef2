#include "powers.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
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

// kCount: counts symbols; else writes powers.
template <bool kCount>
class PowerReader {
 public:
  PowerReader(const Body& body, const Cursor& cursor)
      : code_(body.prefix, cursor), stream_(body.prefix.stream) {
    windows_ = by_windows(body.prefix.symbols) ? kWindows : 0;
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
  const PrefixReader& code() const { return code_; }

  // Reads all powers; `to` has place for them, and may be nullptr where they are counted.
  void read(int16_t* to) {
    TileReader<PowerReader> reader(stream_, windows_ > 0, this);
    OpenTile tiles[kTilesAtOnce];
    to_ = to;
    while (const int count = next_tiles(&code_, tiles)) {
      reader.read(tiles, count);
      for (int t = 0; t < count; ++t) {
        if (!tiles[t].is_right()) code_.fail_size(tiles[t].number);
        if (!kCount) to_ += tiles[t].n;
      }
    }
  }

  // Fails unless the code is that of what was counted.
  void check_counts() const {
    int64_t count[kPowerSymbols];
    std::copy(counts_, counts_ + kPowerSymbols, count);
    for (uint64_t window = 0; window < windows_; ++window)
      for (int j = 0; j < table_[window].count; ++j)
        count[std::abs(table_[window].power[j])] += hits_[window];
    code_.check_counts(count);
  }

  int take(OpenTile* tile, uint64_t window) {
    const uint64_t own = window % kWindows;
    const Entry& entry = table_[own];
    if (kCount)
      ++hits_[own];
    else
      std::memcpy(to_ + tile->first + tile->i, entry.power, sizeof entry.power);
    tile->i += entry.count;
    return entry.bits;
  }

  void one(OpenTile* tile) {
    int16_t power;
    tile->at += first_of(load_bits(stream_, tile->at), &power);
    if (kCount)
      ++counts_[std::abs(power)];
    else
      to_[tile->first + tile->i] = power;
    ++tile->i;
  }

 private:
  PrefixReader code_;
  const uint8_t* stream_;
  int16_t* to_ = nullptr;
  uint64_t windows_ = 0;
  Entry table_[kWindows];
  int64_t hits_[kCount ? kWindows : 1] = {};         // of each window
  int64_t counts_[kCount ? kPowerSymbols : 1] = {};  // of symbols read one by one

  // The first power, and its bits.
  int first_of(uint64_t window, int16_t* power) const {
    const uint16_t entry = code_.entry(window);
    const int word = entry & 15, symbol = entry >> 4;
    const bool minus = symbol != 0 && (window >> word & 1) != 0;
    *power = static_cast<int16_t>(minus ? -symbol : symbol);
    return word + (symbol != 0);
  }
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
  PowerReader<true> reader(body, cursor);
  const PrefixReader& code = reader.code();
  if (code.highest() == 0)
    cursor.fail("code", "lengths", body.prefix.lengths, "must not be those of zeros alone.");
  reader.read(nullptr);
  reader.check_counts();
  if (!is_finite(body.scale, code.highest()))
    cursor.fail("value", "scale", body.prefix.lengths, "times the highest power must be finite.");
}

float largest_power(const Body& body, const Cursor& cursor) {
  if (body.prefix.kinds == 0) return 0;
  return value_of(body.scale, PrefixReader(body.prefix, cursor).highest());
}

void read_powers(const Body& body, const Cursor& cursor, int16_t* power) {
  if (body.prefix.kinds == 0) return;
  PowerReader<false>(body, cursor).read(power);
}

void put_powers(Message* message, int64_t k, float scale, const int16_t* power, int64_t powers) {
  if (!is_scale(bits_of(scale)))
    throw PackError("pack: the scale of a powers packet must be positive and finite, got " +
                    std::to_string(scale) + ".");
  if (powers > 0) check_count("powers", "powers, one an element", powers, k);
  constexpr int kMost = static_cast<int>(kPowerSymbols) - 1;
  int lowest = 0, highest = 0;
  for (int64_t i = 0; i < powers; ++i) {
    lowest = std::min<int>(lowest, power[i]);
    highest = std::max<int>(highest, power[i]);
  }
  if (lowest < -kMost || highest > kMost)
    throw PackError("pack: powers must be in [-278, 278], got " +
                    std::to_string(lowest < -kMost ? lowest : highest) + ".");
  if (!is_finite(scale, std::max(-lowest, highest)))
    throw PackError("pack: the highest power times the scale must be finite in float32.");
  message->word(bits_of(scale));
  if (lowest == 0 && highest == 0) return message->varint(0);
  std::vector<int64_t> counts[kCounts], count(kPowerSymbols);
  for (auto& each : counts) each.resize(2 * kPowerSymbols - 1);
  for (int64_t i = 0; i < powers; ++i) ++counts[i % kCounts][static_cast<size_t>(power[i] + kMost)];
  int64_t signs = 0;
  for (size_t i = 0; i < counts[0].size(); ++i) {
    const int signed_power = static_cast<int>(i) - kMost;
    int64_t sum = 0;
    for (const auto& each : counts) sum += each[i];
    count[static_cast<size_t>(std::abs(signed_power))] += sum;
    signs += signed_power != 0 ? sum : 0;
  }
  PrefixWriter writer(count, signs);
  struct Word {
    uint32_t bits;
    int32_t length;
  };
  std::vector<Word> table(2 * kPowerSymbols - 1);  // of signed powers
  for (int i = -kMost; i <= kMost; ++i) {
    const PrefixWriter::Word word = writer.words()[static_cast<size_t>(std::abs(i))];
    table[static_cast<size_t>(i + kMost)] = {word.bits | (i < 0 ? 1u : 0u) << word.length,
                                             word.length + (i != 0)};
  }
  BitSink sink = writer.sink();
  const Word* const word_of = table.data() + kMost;
  for (int64_t from = 0; from < powers; from += kPrefixTile) {
    const int64_t to = std::min(powers, from + kPrefixTile);
    int64_t i = from;
    for (; i + 4 <= to; i += 4) {
      const Word a = word_of[power[i]], b = word_of[power[i + 1]], c = word_of[power[i + 2]],
                 d = word_of[power[i + 3]];
      const uint64_t first = a.bits | static_cast<uint64_t>(b.bits) << a.length;
      const uint64_t second = c.bits | static_cast<uint64_t>(d.bits) << c.length;
      sink.put(first | second << (a.length + b.length), a.length + b.length + c.length + d.length);
    }
    for (; i < to; ++i) sink.put(word_of[power[i]].bits, word_of[power[i]].length);
    writer.end_tile(sink);
  }
  writer.put(message);
}

}  // namespace gcext::wire
