#include "levels2.h"

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

// Calls visit(at, level, n) for each tile of the levels, checked; `count`: null, or gets how often
// each symbol occurs.
template <class Index, class Visit>
void walk(const Body& body, const Cursor& cursor, int64_t* count, const Visit& visit) {
  const LevelFields& fields = body.levels;
  if (fields.places == 0) return;
  PrefixReader code(body.prefix, cursor);
  NormAt norm_at(fields.bucket, fields.norms);
  const bool zero_norms = any_zero(fields.norm, fields.norms);
  const uint8_t* const stream = body.prefix.stream;
  const Kind* const kinds = kinds_of_all();
  uint64_t gap[kPrefixTile];
  int32_t level[kPrefixTile];
  Index places[kPrefixTile];
  int16_t narrow[kPrefixTile];
  uint64_t next = 0;  // the first place after the last
  for (;;) {
    const PrefixReader::Tile tile = code.next();
    if (tile.n == 0) break;
    int64_t bit = tile.begin, n = 0;
    for (; n < tile.n && bit < tile.end; ++n) {
      uint64_t window = load_bits(stream, bit);
      const uint16_t entry = code.entry(window);
      const Kind& kind = kinds[entry >> 4];
      if (count != nullptr) ++count[entry >> 4];
      int used = entry & 15;
      uint64_t low = 0;
      if (used + kind.gap_low + kind.less_one_low + 1 > 57) {  // the gap's bits alone, in two parts
        bit += used;
        for (int at = 0; at < kind.gap_low; at += 32) {
          const int part = std::min(32, kind.gap_low - at);
          if (bit >= tile.end) break;
          low |= low_of(load_bits(stream, bit), part) << at;
          bit += part;
        }
        if (bit >= tile.end) break;
        window = load_bits(stream, bit);
        used = 0;
      } else {
        low = low_of(window >> used, kind.gap_low);
        used += kind.gap_low;
      }
      gap[n] = kind.gap + low;
      const auto magnitude = static_cast<int32_t>(
          kind.less_one + 1 + static_cast<int32_t>(low_of(window >> used, kind.less_one_low)));
      used += kind.less_one_low;
      const int32_t minus = -static_cast<int32_t>(window >> used & 1);
      level[n] = (magnitude ^ minus) - minus;
      bit += used + 1;
    }
    code.check_end(tile, n < tile.n ? tile.end + 1 : bit);
    const uint8_t* const size = body.prefix.sizes;
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
  }
  if (count != nullptr) code.check_counts(count);
}

}  // namespace

void take_levels2(Cursor* cursor, Body* body) {
  take_norms(cursor, body);
  if (body->levels.places > 0)
    take_prefix(cursor, body->levels.places, kRunSymbols, kMostRunBits, false, &body->prefix);
}

void check_levels2(const Body& body, const Cursor& cursor) {
  const auto none = [](const auto*, const int16_t*, int64_t) {};
  int64_t count[kRunSymbols] = {};
  body.narrow() ? walk<int32_t>(body, cursor, count, none)
                : walk<int64_t>(body, cursor, count, none);
}

template <class Index>
void read_levels2(const Body& body, const Cursor& cursor, Index* at, int16_t* level) {
  walk<Index>(body, cursor, nullptr, [&](const Index* places, const int16_t* tile, int64_t n) {
    at = std::copy(places, places + n, at);
    level = std::copy(tile, tile + n, level);
  });
}

template <class Index>
void put_levels2(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                 int64_t places) {
  check_norms("levels2", k, arrays, places);
  std::vector<int64_t> count(kRunSymbols);
  int64_t more_bits = 0, next = 0;
  std::vector<uint16_t> symbol(static_cast<size_t>(places));
  for (int64_t i = 0; i < places; ++i) {
    const auto place = static_cast<int64_t>(at[i]);
    if (place < next || place >= k)
      throw PackError("pack: places must rise strictly below " + std::to_string(k) + ", got " +
                      std::to_string(place) + ".");
    const Class gap = class_of(static_cast<uint64_t>(place - next));
    const Class less_one =
        class_of(static_cast<uint64_t>(magnitude_of(arrays.level[i], arrays.steps) - 1));
    symbol[static_cast<size_t>(i)] =
        static_cast<uint16_t>(kMagnitudeClasses * gap.number + less_one.number);
    ++count[symbol[static_cast<size_t>(i)]];
    more_bits += gap.low + less_one.low + 1;
    next = place + 1;
  }
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
