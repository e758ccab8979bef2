#include "norms.h"

#include <algorithm>
#include <string>

namespace gcext::wire {
namespace {

int64_t norm_count(int64_t k, int64_t bucket) {
  return bucket == 0 ? std::min<int64_t>(k, 1) : k / bucket + (k % bucket != 0);
}

}  // namespace

bool any_zero(const uint8_t* norm, int64_t n) {
  bool zero = false;
  for (int64_t i = 0; i < n; ++i) zero |= load_word(norm + 4 * i) == 0;
  return zero;
}

void take_norms(Cursor* cursor, Body* body) {
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
  levels.places = cursor->varint("places");
  if (levels.places > body->k)
    cursor->fail("k", "places", place,
                 "must be at most k = " + std::to_string(body->k) + ", got " +
                     std::to_string(levels.places) + ".");
}

void check_norms(const char* method, int64_t k, const LevelArrays& arrays, int64_t places) {
  const int64_t steps = arrays.steps, bucket = arrays.bucket;
  if (steps < 1 || steps > kMaxSteps)
    throw PackError("pack: steps must be in [1, 32767], got " + std::to_string(steps) + ".");
  if (bucket < 0 || (bucket > 0 && bucket >= k))
    throw PackError("pack: bucket must be in [0, " + std::to_string(k) + "), got " +
                    std::to_string(bucket) + ". Use 0 where one norm serves all.");
  check_count(method, "norms", arrays.norms, norm_count(k, bucket));
  check_count(method, "levels, one a place,", arrays.levels, places);
  check_floats(method, "the norms", arrays.norm, arrays.norms, kInfinity - 1);
}

void put_norms(Message* message, const LevelArrays& arrays, int64_t places) {
  message->varint(static_cast<uint64_t>(arrays.steps));
  message->varint(static_cast<uint64_t>(arrays.bucket));
  put_floats(message, arrays.norm, arrays.norms);
  message->varint(static_cast<uint64_t>(places));
}

void check_level(const LevelFields& fields, const Cursor& cursor, int64_t magnitude, int64_t at,
                 NormAt* norm_at, const char* field, const uint8_t* place) {
  if (magnitude > fields.steps)
    cursor.fail("level", field, place,
                "must be at most " + std::to_string(fields.steps) + ", got " +
                    std::to_string(magnitude) + ".");
  const uint8_t* norm = fields.norm + 4 * (*norm_at)(at);
  if (load_word(norm) == 0)
    cursor.fail("level", "norms", norm, "must be positive where a level is not 0.");
}

}  // namespace gcext::wire
