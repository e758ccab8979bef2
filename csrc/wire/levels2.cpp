#include "levels2.h"

#include <string>
#include <vector>

#include "runs.h"

namespace gcext::wire {
namespace {

// Reads the levels, checked; to at and level, or, where these are nullptr, nowhere.
template <class Index>
void walk(const Body& body, const Cursor& cursor, Index* at, int16_t* to) {
  const LevelFields& fields = body.levels;
  NormAt norm_at(fields.bucket, fields.norms);
  const bool zero_norms = any_zero(fields.norm, fields.norms);
  uint64_t next = 0;  // the first place after the last
  const uint8_t* const size = body.prefix.sizes;
  RunReader(body, cursor).read([&](const uint64_t* gap, const int32_t* level, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t place = next + gap[i];  // below 2^63 both
      if (place >= static_cast<uint64_t>(body.k))
        cursor.fail("index", "stream", size,
                    "a place must be below " + std::to_string(body.k) + ".");
      const int64_t magnitude = level[i] < 0 ? -level[i] : level[i];
      if (zero_norms || magnitude > fields.steps)
        check_level(fields, cursor, magnitude, static_cast<int64_t>(place), &norm_at, "stream",
                    size);
      next = place + 1;
      if (at == nullptr) continue;
      at[i] = static_cast<Index>(place);
      to[i] = static_cast<int16_t>(level[i]);
    }
    if (at == nullptr) return;
    at += n;
    to += n;
  });
}

// Counts runs, and then writes them: small ones, which most are, by tables.
class RunWriter {
 public:
  explicit RunWriter(bool tables) : small_(tables ? kSmallGaps : 0), count_(kRunSymbols) {}

  void count(uint64_t gap, int level) {
    const uint64_t own = small_run(gap, level);
    if (own < kSmallRuns)
      ++small_count_[own];
    else
      count_large(gap, level, 1);
  }

  // Ends the counting. Whether every level is one of so many steps, and not 0.
  bool end_count(int64_t steps) {
    for (uint64_t gap = 0; gap < small_; ++gap)
      for (int level = -kSmallLevels; level < kSmallLevels; ++level)
        if (const int64_t times = small_count_[small_run(gap, level)])
          count_large(gap, level, times);
    return least_ > 0 && most_ <= steps;
  }

  // The code of what was counted.
  PrefixWriter make_code() {
    PrefixWriter writer(count_, more_bits_);
    words_ = writer.words();
    for (uint64_t gap = 0; gap < small_; ++gap) {
      for (int level = -kSmallLevels; level < kSmallLevels; ++level) {
        const uint64_t own = small_run(gap, level);
        if (small_count_[own] > 0) small_word_[own] = word_of(gap, level);
      }
    }
    return writer;
  }

  void put(uint64_t gap, int level, BitSink* sink) const {
    const uint64_t own = small_run(gap, level);
    if (own < kSmallRuns) return sink->put(small_word_[own].bits, small_word_[own].length);
    const Class place = class_of(gap);
    if (place.low <= 28) {
      const Word word = word_of(gap, level);
      return sink->put(word.bits, word.length);
    }
    // 56 bits at a time: the word, the gap's low bits, the rest.
    const uint64_t magnitude = less_one(level);
    const Class own_class = class_of(magnitude);
    const PrefixWriter::Word word = words_[symbol_of(place, own_class)];
    sink->put(word.bits, word.length);
    uint64_t low = low_of(gap, place.low);
    int left = place.low;
    for (; left > 28; left -= 28, low >>= 28) sink->put(low_of(low, 28), 28);
    sink->put(low, left);
    sink->put(low_of(magnitude, own_class.low), own_class.low);
    sink->put(level < 0, 1);
  }

 private:
  static constexpr uint64_t kSmallGaps = 16;
  static constexpr int kSmallLevels = 64;
  static constexpr uint64_t kSmallRuns = kSmallGaps * 2 * kSmallLevels;

  struct Word {
    uint64_t bits = 0;
    int length = 0;
  };

  const uint64_t small_;  // gaps below are looked up
  std::vector<int64_t> count_;
  int64_t more_bits_ = 0, least_ = INT64_MAX, most_ = 0;  // magnitudes
  std::vector<PrefixWriter::Word> words_;
  int64_t small_count_[kSmallRuns] = {};
  Word small_word_[kSmallRuns];

  // Its place in the tables; kSmallRuns: it has none.
  uint64_t small_run(uint64_t gap, int level) const {
    const auto own = static_cast<unsigned>(level + kSmallLevels);
    return gap < small_ && own < 2 * kSmallLevels ? gap * 2 * kSmallLevels + own : kSmallRuns;
  }
  static uint64_t less_one(int level) {
    return static_cast<uint64_t>((level < 0 ? -level : level) - 1);
  }
  static size_t symbol_of(const Class& gap, const Class& less_one) {
    return static_cast<size_t>(kMagnitudeClasses * gap.number + less_one.number);
  }

  void count_large(uint64_t gap, int level, int64_t times) {
    const int64_t magnitude = level < 0 ? -level : level;
    least_ = std::min(least_, magnitude);
    most_ = std::max(most_, magnitude);
    if (magnitude == 0) return;
    const Class place = class_of(gap), own = class_of(less_one(level));
    count_[symbol_of(place, own)] += times;
    more_bits_ += times * (place.low + own.low + 1);
  }

  // All of a run, of 54 bits or fewer.
  Word word_of(uint64_t gap, int level) const {
    const uint64_t magnitude = less_one(level);
    const Class place = class_of(gap), own = class_of(magnitude);
    const PrefixWriter::Word word = words_[symbol_of(place, own)];
    uint64_t bits = word.bits;
    int length = word.length;
    bits |= low_of(gap, place.low) << length;
    length += place.low;
    bits |= low_of(magnitude, own.low) << length;
    length += own.low;
    bits |= static_cast<uint64_t>(level < 0) << length;
    return {bits, length + 1};
  }
};

}  // namespace

void take_levels2(Cursor* cursor, Body* body) {
  take_norms(cursor, body);
  if (body->levels.places > 0)
    take_prefix(cursor, body->levels.places, kRunSymbols, kMostRunBits, false, &body->prefix);
}

// What the counts show at once; where that is too much, or norms are 0, place by place, in the
// order of the rules.
void check_levels2(const Body& body, const Cursor& cursor) {
  const LevelFields& fields = body.levels;
  if (fields.places == 0) return;
  RunCounter counter(body, cursor);
  if (!counter.count(body.k, fields.steps) || any_zero(fields.norm, fields.norms))
    walk<int64_t>(body, cursor, nullptr, nullptr);
  counter.check();
}

template <class Index>
void read_levels2(const Body& body, const Cursor& cursor, Index* at, int16_t* level) {
  if (body.levels.places > 0) walk(body, cursor, at, level);
}

template <class Index>
void put_levels2(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                 int64_t places) {
  check_norms("levels2", k, arrays, places);
  RunWriter runs(by_windows(places));
  int64_t next = 0;
  for (int64_t i = 0; i < places; ++i) {
    const auto place = static_cast<int64_t>(at[i]);
    if (place < next || place >= k)
      throw PackError("pack: places must rise strictly below " + std::to_string(k) + ", got " +
                      std::to_string(place) + ".");
    runs.count(static_cast<uint64_t>(place - next), arrays.level[i]);
    next = place + 1;
  }
  if (!runs.end_count(arrays.steps))
    for (int64_t i = 0; i < places; ++i) magnitude_of(arrays.level[i], arrays.steps);
  check_norms_at(arrays, at, places);
  put_norms(message, arrays, places);
  if (places == 0) return;
  PrefixWriter writer = runs.make_code();
  BitSink sink = writer.sink();
  next = 0;
  for (int64_t from = 0; from < places; from += kPrefixTile) {
    for (int64_t i = from; i < std::min(places, from + kPrefixTile); ++i) {
      const auto place = static_cast<int64_t>(at[i]);
      runs.put(static_cast<uint64_t>(place - next), arrays.level[i], &sink);
      next = place + 1;
    }
    writer.end_tile(sink);
  }
  writer.put(message);
}

template void read_levels2(const Body&, const Cursor&, int32_t*, int16_t*);
template void read_levels2(const Body&, const Cursor&, int64_t*, int16_t*);
template void put_levels2(Message*, int64_t, const LevelArrays&, const int32_t*, int64_t);
template void put_levels2(Message*, int64_t, const LevelArrays&, const int64_t*, int64_t);

}  // namespace gcext::wire
