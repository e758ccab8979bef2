// Norms over buckets of elements and how many of the levels are not 0: what levels and levels2
// begin with; docs/wire-format.md.
//
//   | steps varint | bucket varint | norms f32 .. | K varint |
#pragma once

#include <cstdint>

#include "fields.h"

namespace gcext::wire {

constexpr int64_t kMaxSteps = INT16_MAX;

struct LevelArrays {
  int64_t steps, bucket;
  const float* norm;
  int64_t norms;
  const int16_t* level;  // one a place
  int64_t levels;
};

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

// Whether one of n norms is 0.
bool any_zero(const uint8_t* norm, int64_t n);

// Takes the fields off the cursor, into body->levels.
void take_norms(Cursor* cursor, Body* body);

// Throws PackError where the fields, for k elements and `places` levels, are not those of a packet.
void check_norms(const char* method, int64_t k, const LevelArrays& arrays, int64_t places);

// Throws PackError where one of the places, which rise, has a norm of 0.
template <class Index>
void check_norms_at(const LevelArrays& arrays, const Index* at, int64_t places) {
  const auto* norm = reinterpret_cast<const uint8_t*>(arrays.norm);
  if (!any_zero(norm, arrays.norms)) return;
  NormAt norm_at(arrays.bucket, arrays.norms);
  for (int64_t i = 0; i < places; ++i)
    if (load_word(norm + 4 * norm_at(static_cast<int64_t>(at[i]))) == 0)
      throw PackError("pack: a norm must be positive where a level is not 0, got 0.");
}

[[noreturn]] inline void refuse_level(int level, int64_t steps) {
  throw PackError("pack: levels must be in [-" + std::to_string(steps) + ", " +
                  std::to_string(steps) + "] and not 0, got " + std::to_string(level) + ".");
}

inline bool is_level(int level, int64_t steps) {
  return level != 0 && -steps <= level && level <= steps;
}

// The magnitude of a level. Throws PackError unless it is in [1, steps].
inline int magnitude_of(int level, int64_t steps) {
  if (!is_level(level, steps)) refuse_level(level, steps);
  return level < 0 ? -level : level;
}

void put_norms(Message* message, const LevelArrays& arrays, int64_t places);

// Fails at a level whose magnitude is above the steps, or whose norm is 0: `place` is where it is.
void check_level(const LevelFields& fields, const Cursor& cursor, int64_t magnitude, int64_t at,
                 NormAt* norm_at, const char* field, const uint8_t* place);

}  // namespace gcext::wire
