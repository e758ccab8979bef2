#include "levels2.h"

#include <atomic>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "runs.h"

namespace gcext::wire {
namespace {

// Reads the levels, checked, in order; to at and level, or, where these are nullptr, nowhere.
template <class Index>
void walk(const RunCode& code, const Body& body, const Cursor& cursor, Index* at, int16_t* to) {
  const LevelFields& fields = body.levels;
  NormAt norm_at(fields.bucket, fields.norms);
  const bool zero_norms = any_zero(fields.norm, fields.norms);
  uint64_t next = 0;  // the first place after the last
  const uint8_t* const size = body.prefix.sizes;
  const TileParts whole(fields.places, 1);
  RunReader(code).read(whole, 0, [&](const uint64_t* gap, const int32_t* level, int64_t n) {
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

// The same in parts, each on a thread. False where a level is to be refused, after what was written
// is of no use: walk finds out which.
template <class Index>
bool walk_in_parts(const RunCode& code, const Body& body, Index* at, int16_t* to) {
  const TileParts& parts = code.parts();
  const auto k = static_cast<uint64_t>(body.k);
  std::vector<uint64_t> reach(static_cast<size_t>(parts.count()));  // places of each part
  std::atomic<bool> right{true};
  run_parts(parts.count(), [&](int64_t part) {
    int64_t done = parts.symbol(part);
    uint64_t next = 0;
    bool own = true;
    RunReader(code).read(parts, part, [&](const uint64_t* gap, const int32_t* level, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        const uint64_t place = next + gap[i];
        own &= place < k && std::abs(level[i]) <= body.levels.steps;
        next = place + 1;
        at[done + i] = static_cast<Index>(place);
        to[done + i] = static_cast<int16_t>(level[i]);
      }
      done += n;
    });
    if (!own) right = false;
    reach[static_cast<size_t>(part)] = next;
  });
  return right &&
         join_parts(std::move(reach), k, [&](int64_t part) { return parts.symbol(part); }, at);
}

constexpr uint64_t kSmallGaps = 16;
constexpr int kSmallLevels = 64;
constexpr uint64_t kSmallRuns = kSmallGaps * 2 * kSmallLevels;

// The place of a run in tables of small ones, which most are; kSmallRuns: it has none. gaps: those
// below are in the tables.
uint64_t small_run(uint64_t gap, int level, uint64_t gaps) {
  const auto own = static_cast<unsigned>(level + kSmallLevels);
  return gap < gaps && own < 2 * kSmallLevels ? gap * 2 * kSmallLevels + own : kSmallRuns;
}

uint64_t less_one(int level) { return static_cast<uint64_t>((level < 0 ? -level : level) - 1); }

size_t symbol_of(const Class& gap, const Class& less_one) {
  return static_cast<size_t>(kMagnitudeClasses * gap.number + less_one.number);
}

// Counts the runs of a part.
class RunTally {
 public:
  explicit RunTally(uint64_t small_gaps) : small_(small_gaps) {}

  void add(uint64_t gap, int level) {
    const uint64_t own = small_run(gap, level, small_);
    if (own < kSmallRuns)
      ++small_count_[own];
    else
      add_large(gap, level, 1);
  }

  void end() {
    for (uint64_t gap = 0; gap < small_; ++gap)
      for (int level = -kSmallLevels; level < kSmallLevels; ++level)
        if (const int64_t times = small_count_[small_run(gap, level, small_)])
          add_large(gap, level, times);
  }

  // After end().
  const std::vector<int64_t>& count() const { return count_; }
  int64_t more_bits() const { return more_bits_; }  // what follows the words
  bool is_within(int64_t steps) const { return least_ > 0 && most_ <= steps; }

 private:
  const uint64_t small_;
  std::vector<int64_t> count_ = std::vector<int64_t>(kRunSymbols);
  int64_t more_bits_ = 0, least_ = INT64_MAX, most_ = 0;  // magnitudes
  int64_t small_count_[kSmallRuns] = {};

  void add_large(uint64_t gap, int level, int64_t times) {
    const int64_t magnitude = level < 0 ? -level : level;
    least_ = std::min(least_, magnitude);
    most_ = std::max(most_, magnitude);
    if (magnitude == 0) return;
    const Class place = class_of(gap), own = class_of(less_one(level));
    count_[symbol_of(place, own)] += times;
    more_bits_ += times * (place.low + own.low + 1);
  }
};

// The bits of runs.
class RunWords {
 public:
  RunWords(const std::vector<PrefixWriter::Word>& words, uint64_t small_gaps)
      : words_(words), small_(small_gaps) {
    for (uint64_t gap = 0; gap < small_; ++gap)
      for (int level = -kSmallLevels; level < kSmallLevels; ++level)
        if (level != 0) small_word_[small_run(gap, level, small_)] = word_of(gap, level);
  }

  void put(uint64_t gap, int level, BitSink* sink) const {
    const uint64_t own = small_run(gap, level, small_);
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
  struct Word {
    uint64_t bits = 0;
    int length = 0;
  };

  const std::vector<PrefixWriter::Word>& words_;
  const uint64_t small_;
  Word small_word_[kSmallRuns];

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

// The places between two that follow each other; they may be any numbers.
uint64_t gap_after(int64_t previous, int64_t place) {
  return static_cast<uint64_t>(place) - static_cast<uint64_t>(previous) - 1;
}

// Writes a tile's runs; returns their bits. Its own copies of everything stay in registers, where
// the bytes that it writes might be anything else's.
template <class Index>
int64_t put_tile(const RunWords& words, const Index* at, const int16_t* level, int64_t n,
                 int64_t* previous, BitSink* out) {
  BitSink sink = *out;
  int64_t last = *previous;
  for (int64_t i = 0; i < n; ++i) {
    const auto place = static_cast<int64_t>(at[i]);
    words.put(gap_after(last, place), level[i], &sink);
    last = place;
  }
  const int64_t bits = sink.bits() - out->bits();
  *previous = last;
  *out = sink;
  return bits;
}

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
  const RunCode code(body, cursor);
  RunCounts counts;
  std::mutex mutex;
  run_parts(code.parts().count(), [&](int64_t part) {
    RunCounter counter(code);
    const RunCounts& own = counter.count(part);
    const std::lock_guard<std::mutex> lock(mutex);
    counts.add(own);
  });
  if (counts.reach > static_cast<uint64_t>(body.k) || counts.most > fields.steps ||
      any_zero(fields.norm, fields.norms))
    walk<int64_t>(code, body, cursor, nullptr, nullptr);
  if (counts.wrong < code.prefix().tile_count()) code.prefix().fail_size(counts.wrong);
  code.prefix().check_counts(counts.symbol);
}

template <class Index>
void read_levels2(const Body& body, const Cursor& cursor, Index* at, int16_t* level) {
  if (body.levels.places == 0) return;
  const RunCode code(body, cursor);
  const bool one_by_one =
      code.parts().count() == 1 || any_zero(body.levels.norm, body.levels.norms);
  if (one_by_one || !walk_in_parts(code, body, at, level)) walk(code, body, cursor, at, level);
}

template <class Index>
void put_levels2(Message* message, int64_t k, const LevelArrays& arrays, const Index* at,
                 int64_t places) {
  check_norms("levels2", k, arrays, places);
  const TileParts parts(places);
  const uint64_t small = by_windows(places) ? kSmallGaps : 0;
  const auto before = [&](int64_t i) { return i == 0 ? -1 : static_cast<int64_t>(at[i - 1]); };
  std::vector<RunTally> tallies(static_cast<size_t>(parts.count()), RunTally(small));
  run_parts(parts.count(), [&](int64_t part) {
    RunTally& tally = tallies[static_cast<size_t>(part)];
    const int64_t end = parts.symbol(part + 1), limit = k;
    const Index* const own_at = at;
    const int16_t* const level = arrays.level;
    int64_t previous = before(parts.symbol(part));
    for (int64_t i = parts.symbol(part); i < end; ++i) {
      const auto place = static_cast<int64_t>(own_at[i]);
      if (place <= previous || place >= limit)
        throw PackError("pack: places must rise strictly below " + std::to_string(limit) +
                        ", got " + std::to_string(place) + ".");
      tally.add(gap_after(previous, place), level[i]);
      previous = place;
    }
    tally.end();
  });
  std::vector<int64_t> count(kRunSymbols);
  for (const RunTally& tally : tallies) {
    if (!tally.is_within(arrays.steps))
      for (int64_t i = 0; i < places; ++i) magnitude_of(arrays.level[i], arrays.steps);
    for (size_t i = 0; i < count.size(); ++i) count[i] += tally.count()[i];
  }
  check_norms_at(arrays, at, places);
  put_norms(message, arrays, places);
  if (places == 0) return;
  PrefixWriter writer(count, places);
  std::vector<int64_t> bits;
  for (const RunTally& tally : tallies)
    bits.push_back(writer.word_bits(tally.count()) + tally.more_bits());
  writer.cut(bits);
  const RunWords words(writer.words(), small);
  run_parts(parts.count(), [&](int64_t part) {
    BitSink sink = writer.open(part);
    int64_t previous = before(parts.symbol(part));
    for (int64_t tile = parts.tile(part); tile < parts.tile(part + 1); ++tile) {
      const int64_t from = tile * kPrefixTile, end = std::min(places, from + kPrefixTile);
      writer.set_size(
          tile, put_tile(words, at + from, arrays.level + from, end - from, &previous, &sink));
    }
  });
  writer.put(message);
}

template void read_levels2(const Body&, const Cursor&, int32_t*, int16_t*);
template void read_levels2(const Body&, const Cursor&, int64_t*, int16_t*);
template void put_levels2(Message*, int64_t, const LevelArrays&, const int32_t*, int64_t);
template void put_levels2(Message*, int64_t, const LevelArrays&, const int64_t*, int64_t);

}  // namespace gcext::wire
