#include "powers.h"

#include <cmath>
#include <string>

#include "fields.h"

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

// What a window begins with, without a branch: the signed symbol, and all its bits.
struct Entry {
  uint16_t symbol;
  uint8_t word, bits;  // bits: with the sign
};

class PowerReader {
 public:
  PowerReader(const Body& body, const Cursor& cursor)
      : code_(body.prefix, cursor), stream_(body.prefix.stream) {
    for (uint64_t window = 0; window <= code_.mask(); ++window) {
      const uint16_t entry = code_.entry(window);
      const auto word = static_cast<uint8_t>(entry & 15);
      table_[window] = {static_cast<uint16_t>(entry >> 4), word,
                        static_cast<uint8_t>(word + (entry >> 4 != 0))};
    }
  }
  const PrefixReader& code() const { return code_; }

  // The numbers of the next tiles, up to kAtOnce of them; returns how many, 0 after the last.
  int64_t next(int16_t* power) {
    PrefixReader::Tile tiles[kAtOnce];
    int count = 0;
    int64_t n = 0;
    while (count < kAtOnce) {
      const PrefixReader::Tile tile = code_.next();
      if (tile.n == 0) break;
      tiles[count++] = tile;
      n += tile.n;
    }
    if (n == kAtOnce * kPrefixTile && read_together(tiles, power)) return n;
    int16_t* to = power;
    for (int t = 0; t < count; to += tiles[t++].n) read_one(tiles[t], to);
    return n;
  }

  static constexpr int kAtOnce = 4;

 private:
  static constexpr int64_t kPerWindow = 4;  // 52 bits at most
  static_assert(kPerWindow * kMostPowerBits <= 57);

  // Whole tiles side by side, as each number waits for the last of its tile. False where one of
  // them is wrong.
  bool read_together(const PrefixReader::Tile* tiles, int16_t* power) const {
    int64_t at[kAtOnce];
    for (int t = 0; t < kAtOnce; ++t) at[t] = tiles[t].begin;
    for (int64_t i = 0; i < kPrefixTile; i += kPerWindow) {
      for (int t = 0; t < kAtOnce; ++t) {
        if (at[t] >= tiles[t].end) return false;
        uint64_t window = load_bits(stream_, at[t]);
        for (int64_t j = 0; j < kPerWindow; ++j)
          at[t] += take(&window, power + t * kPrefixTile + i + j);
      }
    }
    bool right = true;
    for (int t = 0; t < kAtOnce; ++t) right = right && at[t] == tiles[t].end;
    return right;
  }

  void read_one(const PrefixReader::Tile& tile, int16_t* power) const {
    int64_t at = tile.begin, i = 0;
    for (; i + kPerWindow <= tile.n && at < tile.end; i += kPerWindow) {
      uint64_t window = load_bits(stream_, at);
      for (int64_t j = 0; j < kPerWindow; ++j) at += take(&window, power + i + j);
    }
    for (; i < tile.n && at < tile.end; ++i) {
      uint64_t window = load_bits(stream_, at);
      at += take(&window, power + i);
    }
    code_.check_end(tile, i < tile.n ? tile.end + 1 : at);
  }

  int take(uint64_t* window, int16_t* power) const {
    const Entry entry = table_[*window & code_.mask()];
    const int minus = -static_cast<int>(*window >> entry.word & (entry.bits - entry.word));
    *power = static_cast<int16_t>((entry.symbol ^ minus) - minus);
    *window >>= entry.bits;
    return entry.bits;
  }

  PrefixReader code_;
  const uint8_t* stream_;
  Entry table_[kMaxAlphabet];
};

}  // namespace

void take_powers(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  const uint32_t word = cursor->word("scale");
  if (!is_scale(word)) cursor->fail("scale", "scale", place, "must be positive and finite.");
  std::memcpy(&body->scale, &word, 4);
  take_prefix(cursor, body->k, kPowers2, kMostPowerBits, true, &body->prefix);
}

void check_powers(const Body& body, const Cursor& cursor) {
  if (body.prefix.kinds == 0) return;
  PowerReader reader(body, cursor);
  const PrefixReader& code = reader.code();
  if (code.highest() == 0)
    cursor.fail("code", "lengths", body.prefix.lengths, "must not be those of zeros alone.");
  int64_t counts[kCounts][kPowers2] = {};
  int16_t tiles[PowerReader::kAtOnce * kPrefixTile];
  while (const int64_t n = reader.next(tiles))
    for (int64_t i = 0; i < n; ++i) ++counts[i % kCounts][tiles[i] < 0 ? -tiles[i] : tiles[i]];
  int64_t count[kPowers2] = {};
  for (const auto& some : counts)
    for (int64_t symbol = 0; symbol < kPowers2; ++symbol) count[symbol] += some[symbol];
  code.check_counts(count);
  if (!is_finite(body.scale, code.highest()))
    cursor.fail("value", "scale", body.prefix.lengths, "times the highest power must be finite.");
}

float largest_power(const Body& body, const Cursor& cursor) {
  if (body.prefix.kinds == 0) return 0;
  return value_of(body.scale, PowerReader(body, cursor).code().highest());
}

void read_powers(const Body& body, const Cursor& cursor, int16_t* power) {
  if (body.prefix.kinds == 0) return;
  PowerReader reader(body, cursor);
  while (const int64_t n = reader.next(power)) power += n;
}

void put_powers(Message* message, int64_t k, float scale, const int16_t* power, int64_t powers) {
  if (!is_scale(bits_of(scale)))
    throw PackError("pack: the scale of a powers packet must be positive and finite, got " +
                    std::to_string(scale) + ".");
  if (powers > 0) check_count("powers", "powers, or none where all are 0,", powers, k);
  constexpr int kMost = static_cast<int>(kPowers2) - 1;
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
  std::vector<int64_t> counts[kCounts], count(kPowers2);
  for (auto& each : counts) each.resize(2 * kPowers2 - 1);
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
  std::vector<Word> table(2 * kPowers2 - 1);  // of signed powers
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
