#include "levels.h"

#include <algorithm>
#include <string>
#include <vector>

#include "../bits.h"
#include "fields.h"

namespace gcext::wire {
namespace {

int64_t norm_count(int64_t k, int64_t bucket) {
  return bucket == 0 ? std::min<int64_t>(k, 1) : k / bucket + (k % bucket != 0);
}

// Which norm covers each of rising places.
class NormAt {
 public:
  NormAt(int64_t bucket, int64_t norms)
      : bucket_(static_cast<uint64_t>(bucket)),
        end_(bucket > 0 ? bucket_ : UINT64_MAX),
        norms_(norms) {}

  // `norms` where there is none.
  int64_t operator()(int64_t at) {
    for (; static_cast<uint64_t>(at) >= end_ && norm_ < norms_; end_ += bucket_) ++norm_;
    return norm_;
  }

 private:
  uint64_t bucket_, end_;
  int64_t norm_ = 0, norms_;
};

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
    for (; n < kTile && place_ < k_; ++place_) {
      if (used_ == held_) {
        used_ = 0;
        held_ = reader_.next(zero_);
      }
      if (used_ < held_ && static_cast<int64_t>(zero_[used_]) == place_)
        ++used_;
      else
        at[n++] = static_cast<Index>(place_);
    }
    return n;
  }

 private:
  SectionReader reader_;
  int64_t k_, place_ = 0, used_ = 0, held_ = 0;
  bool zeros_;
  Index zero_[kTile];
};

// Calls visit(at, level, n) for each tile of the levels, checked: a tile of magnitudes, then one
// level after the other.
template <class Index, class Visit>
void walk_levels(const Body& body, const Cursor& cursor, const Visit& visit) {
  const LevelFields& fields = body.levels;
  // The sign bits are there, a byte for 8 places, so the product does not overflow.
  SectionReader numbers(fields.numbers, fields.places * fields.steps, cursor);
  PlaceReader<Index> places(body, cursor);
  NormAt norm_at(fields.bucket, fields.norms);
  Index at[kTile];
  int64_t number[kTile], previous = -1;
  int16_t level[kTile];
  for (int64_t first = 0; const int64_t n = places.next(at); first += n) {
    if (fields.steps > 1) numbers.next(number);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t magnitude = fields.steps > 1 ? number[i] - previous : 1;
      previous += magnitude;
      if (magnitude > fields.steps)
        cursor.fail("level", "levels.tiles", fields.numbers.table + kTileBytes * (first / kTile),
                    "must be at most " + std::to_string(fields.steps) + ", got " +
                        std::to_string(magnitude) + ".");
      const uint8_t* norm = fields.norm + 4 * norm_at(static_cast<int64_t>(at[i]));
      if (load_word(norm) == 0)
        cursor.fail("level", "norms", norm, "must be positive where a level is not 0.");
      const bool negative = (body.signs[(first + i) >> 3] >> ((first + i) & 7) & 1) != 0;
      level[i] = static_cast<int16_t>(negative ? -magnitude : magnitude);
    }
    visit(at, level, n);
  }
}

}  // namespace

void take_levels(Cursor* cursor, Body* body) {
  LevelFields& levels = body->levels;
  const uint8_t* place = cursor->at();
  levels.steps = cursor->varint("steps");
  if (levels.steps < 1 || levels.steps > kMaxSteps)
    cursor->fail("steps", "steps", place,
                 "must be in [1, 32767], got " + std::to_string(levels.steps) + ".");
  place = cursor->at();
  levels.bucket = cursor->varint("bucket");
  if (levels.bucket > 0 && levels.bucket >= body->k)
    cursor->fail("bucket", "bucket", place,
                 "must be below k, got " + std::to_string(levels.bucket) + ".");
  levels.norms = norm_count(body->k, levels.bucket);
  levels.norm = take_scales(cursor, levels.norms, "norms", kInfinity - 1);
  place = cursor->at();
  const int64_t count = cursor->varint("places");
  if (count > body->k)
    cursor->fail(
        "k", "places", place,
        "must be at most k = " + std::to_string(body->k) + ", got " + std::to_string(count) + ".");
  levels.places = count;
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
    SectionReader reader(body.levels.zeros_or_places, body.k, cursor);
    Index tile[kTile];
    while (reader.next(tile) > 0) {
    }
    walk_levels<Index>(body, cursor, [](const Index*, const int16_t*, int64_t) {});
  };
  body.narrow() ? check(int32_t{}) : check(int64_t{});
}

template <class Index>
void read_levels(const Body& body, const Cursor& cursor, Index* at, int16_t* level) {
  walk_levels<Index>(body, cursor, [&](const Index* tile_at, const int16_t* tile, int64_t n) {
    at = std::copy(tile_at, tile_at + n, at);
    level = std::copy(tile, tile + n, level);
  });
}

template <class Index>
void level_values(const LevelArrays& arrays, const Index* at, float* value) {
  NormAt norm_at(arrays.bucket, arrays.norms);
  const double steps = static_cast<double>(arrays.steps);
  for (int64_t i = 0; i < arrays.levels; ++i) {
    const int64_t which = norm_at(static_cast<int64_t>(at[i]));
    if (which >= arrays.norms)
      throw PackError("level_values: norms must cover every place, got " +
                      std::to_string(arrays.norms) + " norms.");
    value[i] =
        static_cast<float>(static_cast<double>(arrays.norm[which]) * arrays.level[i] / steps);
  }
}

namespace {

// The section of places, of those that rise strictly within [0, k).
template <class Index>
PackedSection pack_places(const Index* at, int64_t places, int64_t k) {
  if (!names_zeros(places, k)) return pack_section(at, places, k);
  std::vector<Index> zeros;
  zeros.reserve(static_cast<size_t>(k - places));
  int64_t place = 0;
  for (int64_t i = 0; i < places; ++i, ++place) {
    const int64_t next = static_cast<int64_t>(at[i]);
    if (next < place || next >= k)
      throw PackError("pack: places must rise strictly below " + std::to_string(k) + ", got " +
                      std::to_string(next) + ".");
    for (; place < next; ++place) zeros.push_back(static_cast<Index>(place));
  }
  for (; place < k; ++place) zeros.push_back(static_cast<Index>(place));
  return pack_section(zeros.data(), k - places, k);
}

}  // namespace

template <class Index>
void put_levels(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                int64_t places) {
  const int64_t steps = arrays.steps, bucket = arrays.bucket;
  if (steps < 1 || steps > kMaxSteps)
    throw PackError("pack: steps must be in [1, 32767], got " + std::to_string(steps) + ".");
  if (bucket < 0 || (bucket > 0 && bucket >= k))
    throw PackError("pack: bucket must be in [0, " + std::to_string(k) + "), got " +
                    std::to_string(bucket) + ". Use 0 where one norm serves all.");
  check_count("levels", "norms", arrays.norms, norm_count(k, bucket));
  check_count("levels", "levels, one a place,", arrays.levels, places);
  check_floats("levels", "the norms", arrays.norm, arrays.norms, kInfinity - 1);
  PackedSection section = pack_places(at, places, k);  // from here on, `at` is known to rise
  NormAt norm_at(bucket, arrays.norms);
  std::vector<int64_t> number(steps > 1 ? static_cast<size_t>(places) : 0);
  std::vector<uint8_t> signs(static_cast<size_t>(plane_bytes(places, 1)));
  int64_t sum = -1;
  for (int64_t i = 0; i < places; ++i) {
    const int level = arrays.level[i], magnitude = level < 0 ? -level : level;
    if (magnitude < 1 || magnitude > steps)
      throw PackError("pack: levels must be in [-" + std::to_string(steps) + ", " +
                      std::to_string(steps) + "] and not 0, got " + std::to_string(level) + ".");
    if (bits_of(arrays.norm[norm_at(static_cast<int64_t>(at[i]))]) == 0)
      throw PackError("pack: a norm must be positive where a level is not 0, got 0.");
    sum += magnitude;
    if (steps > 1) number[static_cast<size_t>(i)] = sum;
    signs[static_cast<size_t>(i >> 3)] |= static_cast<uint8_t>((level < 0) << (i & 7));
  }
  message->varint(static_cast<uint64_t>(steps));
  message->varint(static_cast<uint64_t>(bucket));
  put_floats(message, arrays.norm, arrays.norms);
  message->varint(static_cast<uint64_t>(places));
  message->own(std::move(section));
  message->own(std::move(signs));
  if (steps > 1) message->own(pack_section(number.data(), places, places * steps));
}

template void read_levels(const Body&, const Cursor&, int32_t*, int16_t*);
template void read_levels(const Body&, const Cursor&, int64_t*, int16_t*);
template void level_values(const LevelArrays&, const int32_t*, float*);
template void level_values(const LevelArrays&, const int64_t*, float*);
template void put_levels(Message*, int64_t, const LevelArrays&, const int32_t*, int64_t);
template void put_levels(Message*, int64_t, const LevelArrays&, const int64_t*, int64_t);

}  // namespace gcext::wire
