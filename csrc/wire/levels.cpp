#include "levels.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "../bits.h"
#include "lender.h"
#include "norms.h"

namespace gcext::wire {
namespace {

// Whether the section of places holds those of the levels that are 0, the fewer.
bool names_zeros(int64_t places, int64_t k) { return places > k - places; }

// The places of the levels that are not 0, a tile at a time.
template <class Index>
class PlaceReader {
 public:
  PlaceReader(const Body& body, const Cursor& cursor)
      : reader_(body.levels.zeros_or_places, body.k, cursor),
        k_(body.k),
        zeros_(names_zeros(body.levels.places, body.k)) {}

  int64_t next(Index* at) {
    if (!zeros_) return reader_.next(at);
    int64_t n = 0;
    while (n < kTile && place_ < k_) {
      if (used_ == held_) {
        used_ = 0;
        held_ = reader_.next(zero_);
      }
      const int64_t zero = used_ < held_ ? static_cast<int64_t>(zero_[used_]) : k_;
      const int64_t end = std::min(zero, place_ + kTile - n);
      while (place_ < end) at[n++] = static_cast<Index>(place_++);
      if (place_ < zero) break;
      used_ += used_ < held_;
      ++place_;
    }
    return n;
  }

 private:
  SectionReader reader_;
  int64_t k_, place_ = 0, used_ = 0, held_ = 0;
  bool zeros_;
  Index zero_[kTile];
};

// Fails at the first of the levels of tile `t` that is wrong. at: null where no norm is 0, as then
// it does not matter which norm a level has.
template <class Index>
void check_each(const LevelFields& fields, const Cursor& cursor, int64_t t, const Index* at,
                const int64_t* magnitude, int64_t n, NormAt* norm_at) {
  const uint8_t* entry = fields.numbers.table + kTileBytes * t;
  for (int64_t i = 0; i < n; ++i)
    check_level(fields, cursor, magnitude[i], at == nullptr ? 0 : static_cast<int64_t>(at[i]),
                norm_at, "levels.tiles", entry);
}

int sign_bit(const uint8_t* signs, int64_t i) { return signs[i >> 3] >> (i & 7) & 1; }

// Whether all levels are 1 or -1, and none of them is to be refused: then a sign bit is all that
// there is of a level, and no level depends on another.
bool is_ternary(const LevelFields& fields) {
  return fields.steps == 1 && !any_zero(fields.norm, fields.norms);
}

// The levels of a ternary one.
void read_signs(const Body& body, int16_t* level) {
  const int64_t n = body.levels.places, parts = part_count(n, kNumbersOfPart);
  run_parts(parts, [&](int64_t part) {
    const int64_t last = n * (part + 1) / parts;
    for (int64_t i = n * part / parts; i < last; ++i)
      level[i] = static_cast<int16_t>(1 - 2 * sign_bit(body.signs, i));
  });
}

// Calls visit(at, level, n) for each tile of the levels, checked: a tile of magnitudes, then one
// level after the other. Without `placed`, `at` is only known where a norm is 0.
template <class Index, class Visit>
void walk_levels(const Body& body, const Cursor& cursor, bool placed, const Visit& visit) {
  const LevelFields& fields = body.levels;
  // The sign bits are there, a byte for 8 places, so the product does not overflow.
  SectionReader numbers(fields.numbers, fields.places * fields.steps, cursor);
  PlaceReader<Index> places(body, cursor);
  NormAt norm_at(fields.bucket, fields.norms);
  const bool zero_norms = any_zero(fields.norm, fields.norms), known = placed || zero_norms;
  Index at[kTile];
  int64_t number[kTile], magnitude[kTile], last = -1;
  int16_t level[kTile];
  std::fill(magnitude, magnitude + kTile, 1);
  for (int64_t t = 0; t * kTile < fields.places; ++t) {
    const int64_t n = std::min(kTile, fields.places - t * kTile);
    if (known) places.next(at);
    int64_t spare = 0;  // negative where a magnitude is above the steps
    if (fields.steps > 1) {
      numbers.next(number);
      magnitude[0] = number[0] - last;
      for (int64_t i = 1; i < n; ++i) magnitude[i] = number[i] - number[i - 1];
      for (int64_t i = 0; i < n; ++i) spare |= fields.steps - magnitude[i];
      last = number[n - 1];
    }
    if (spare < 0 || zero_norms)
      check_each(fields, cursor, t, known ? at : nullptr, magnitude, n, &norm_at);
    const uint8_t* signs = body.signs + t * (kTile / 8);
    for (int64_t i = 0; i < n; ++i) {
      const int16_t minus = static_cast<int16_t>(-sign_bit(signs, i));
      level[i] = static_cast<int16_t>((magnitude[i] ^ minus) - minus);
    }
    visit(at, level, n);
  }
}

}  // namespace

void take_levels(Cursor* cursor, Body* body) {
  take_norms(cursor, body);
  LevelFields& levels = body->levels;
  const int64_t count = levels.places;
  Section& section = levels.zeros_or_places;
  section.tiles_name = "places.tiles";
  section.remainders_name = "places.remainders";
  section.unary_name = "places.unary";
  take_section(cursor, names_zeros(count, body->k) ? body->k - count : count, &section);
  body->signs = take_plane(cursor, count, "signs");
  levels.numbers.tiles_name = "levels.tiles";
  levels.numbers.remainders_name = "levels.remainders";
  levels.numbers.unary_name = "levels.unary";
  if (levels.steps > 1) take_section(cursor, count, &levels.numbers);
}

void check_levels(const Body& body, const Cursor& cursor) {
  const auto check = [&](auto index) {
    using Index = decltype(index);
    check_section(body.levels.zeros_or_places, body.k, cursor);
    if (is_ternary(body.levels)) return;
    walk_levels<Index>(body, cursor, false, [](const Index*, const int16_t*, int64_t) {});
  };
  body.narrow() ? check(int32_t{}) : check(int64_t{});
}

template <class Index>
void read_levels(const Body& body, const Cursor& cursor, Index* at, int16_t* level) {
  if (is_ternary(body.levels) && !names_zeros(body.levels.places, body.k)) {
    read_section(body.levels.zeros_or_places, body.k, cursor, at);
    return read_signs(body, level);
  }
  walk_levels<Index>(body, cursor, true, [&](const Index* tile_at, const int16_t* tile, int64_t n) {
    at = std::copy(tile_at, tile_at + n, at);
    level = std::copy(tile, tile + n, level);
  });
}

namespace {

// A tile of numbers on their way into a section.
template <class Index>
class Tile {
 public:
  explicit Tile(SectionWriter* writer) : writer_(writer) {}
  void push(Index number) {
    number_[n_++] = number;
    if (n_ == kTile) flush();
  }
  void flush() {
    if (n_ > 0) writer_->append(number_, n_);
    n_ = 0;
  }

 private:
  SectionWriter* writer_;
  int64_t n_ = 0;
  Index number_[kTile];
};

// The section of places, of those that rise strictly within [0, k).
template <class Index>
PackedSection pack_places(const Index* at, int64_t places, int64_t k) {
  if (!names_zeros(places, k)) return pack_section(at, places, k);
  SectionWriter writer;
  Tile<Index> zeros(&writer);
  int64_t place = 0;
  for (int64_t i = 0; i < places; ++i, ++place) {
    const int64_t next = static_cast<int64_t>(at[i]);
    if (next < place || next >= k)
      throw PackError("pack: places must rise strictly below " + std::to_string(k) + ", got " +
                      std::to_string(next) + ".");
    for (; place < next; ++place) zeros.push(static_cast<Index>(place));
  }
  for (; place < k; ++place) zeros.push(static_cast<Index>(place));
  zeros.flush();
  return writer.finish(k);
}

// The sign bits of levels, all of which are checked.
std::vector<uint8_t> pack_signs(const LevelArrays& arrays, int64_t places) {
  std::vector<uint8_t> signs(static_cast<size_t>(plane_bytes(places, 1)));
  const auto bytes = static_cast<int64_t>(signs.size());
  const int64_t parts = part_count(places, kNumbersOfPart);
  run_parts(parts, [&](int64_t part) {
    const int64_t last = bytes * (part + 1) / parts;
    for (int64_t byte = bytes * part / parts; byte < last; ++byte) {
      const int16_t* const level = arrays.level + 8 * byte;
      const int64_t n = std::min<int64_t>(8, places - 8 * byte);
      unsigned eight = 0;
      bool right = true;
      for (int64_t i = 0; i < n; ++i) {
        right &= is_level(level[i], arrays.steps);
        eight |= static_cast<unsigned>(level[i] < 0) << i;
      }
      for (int64_t i = 0; !right && i < n; ++i) magnitude_of(level[i], arrays.steps);
      signs[static_cast<size_t>(byte)] = static_cast<uint8_t>(eight);
    }
  });
  return signs;
}

// The section of the sums of their magnitudes.
PackedSection pack_magnitudes(const LevelArrays& arrays, int64_t places) {
  SectionWriter writer;
  Tile<int64_t> numbers(&writer);
  int64_t sum = -1;
  for (int64_t i = 0; i < places; ++i) numbers.push(sum += std::abs(arrays.level[i]));
  numbers.flush();
  return writer.finish(places * arrays.steps);
}

}  // namespace

template <class Index>
void put_levels(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                int64_t places) {
  check_norms("levels", k, arrays, places);
  PackedSection section = pack_places(at, places, k);  // from here on, `at` is known to rise
  check_norms_at(arrays, at, places);
  std::vector<uint8_t> signs = pack_signs(arrays, places);
  put_norms(message, arrays, places);
  message->own(std::move(section));
  message->own(std::move(signs));
  if (arrays.steps > 1) message->own(pack_magnitudes(arrays, places));
}

template void read_levels(const Body&, const Cursor&, int32_t*, int16_t*);
template void read_levels(const Body&, const Cursor&, int64_t*, int16_t*);
template void put_levels(Message*, int64_t, const LevelArrays&, const int32_t*, int64_t);
template void put_levels(Message*, int64_t, const LevelArrays&, const int64_t*, int64_t);

}  // namespace gcext::wire
