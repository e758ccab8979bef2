// The runs of levels2: a run is how many places before one are not sent, and the level there. Their
// classes, and how they are read; docs/wire-format.md, levels2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "levels2.h"
#include "windows.h"

namespace gcext::wire {

// The class of a number and its low bits.
struct Class {
  int number, low;  // low: how many bits
};

inline Class class_of(uint64_t x) {
  if (x < 2) return {static_cast<int>(x), 0};
  const int e = 63 - __builtin_clzll(x);
  return {2 * e + static_cast<int>(x >> (e - 1) & 1), e - 1};
}

inline int low_bits(int number) { return number < 2 ? 0 : number / 2 - 1; }

// The number of a class with all low bits 0.
inline uint64_t least_of(int number) {
  return number < 2 ? static_cast<uint64_t>(number)
                    : static_cast<uint64_t>(2 + number % 2) << low_bits(number);
}

inline uint64_t low_of(uint64_t x, int bits) { return x & ((uint64_t{1} << bits) - 1); }

// What a symbol stands for.
struct Kind {
  uint64_t gap;
  int32_t less_one;  // of the magnitude
  uint8_t gap_low, less_one_low;
};

inline std::vector<Kind> all_kinds() {
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
inline const Kind* kinds_of_all() {
  static const std::vector<Kind> kinds = all_kinds();
  return kinds.data();
}

// The runs and levels that a window begins with, none where the first takes more bits.
struct alignas(8) RunEntry {
  uint8_t gap[kPerWindow];
  int8_t level[kPerWindow];
  uint8_t bits, count;
};

// A place less the one before it, less one; and the level there.
struct Run {
  uint64_t gap;
  int32_t level;
  uint16_t symbol;
};

// Runs of a stream, one by one.
class RunCode {
 public:
  RunCode(const Body& body, const Cursor& cursor)
      : prefix_(body.prefix, cursor),
        stream_(body.prefix.stream),
        windows_(by_windows(body.prefix.symbols) ? kWindows : 0),
        parts_(body.prefix.symbols) {
    uint16_t symbol[kPerWindow];
    for (uint64_t window = 0; window < windows_; ++window)
      table_[window] = make_entry(window, symbol);
  }

  const PrefixReader& prefix() const { return prefix_; }
  const TileParts& parts() const { return parts_; }
  uint64_t windows() const { return windows_; }  // 0: runs are to be read one by one
  const RunEntry& entry(uint64_t window) const { return table_[window % kWindows]; }

  template <class Symbols, class Visit>
  void read_part(const TileParts& parts, int64_t part, Symbols* symbols, const Visit& visit) const {
    wire::read_part(prefix_, stream_, windows_ > 0, parts, part, symbols, visit);
  }

  // The run that begins at bit `at`; returns where the next one does.
  int64_t read(int64_t at, int64_t end, Run* run) const {
    uint64_t window = load_bits(stream_, at);
    const int bits = bits_of_first(window, run);
    if (bits <= 57) {
      finish(window, run);
      return at + bits;
    }
    // The gap's bits alone, in two parts.
    const Kind& kind = kinds_[run->symbol];
    int64_t bit = at + bits - kind.gap_low - kind.less_one_low - 1;
    uint64_t low = 0;
    for (int done = 0; done < kind.gap_low; done += 32) {
      const int part = std::min(32, kind.gap_low - done);
      if (bit >= end) return end + 1;
      low |= low_of(load_bits(stream_, bit), part) << done;
      bit += part;
    }
    if (bit >= end) return end + 1;
    run->gap = kind.gap + low;
    set_level(load_bits(stream_, bit), kind, run);
    return at + bits;
  }

  // What a window begins with, and the symbols.
  RunEntry make_entry(uint64_t window, uint16_t* symbol) const {
    RunEntry entry{};
    while (entry.count < kPerWindow) {
      Run run;
      const int bits = bits_of_first(window >> entry.bits, &run);
      if (entry.bits + bits > kWindowBits) break;
      finish(window >> entry.bits, &run);
      if (run.gap > UINT8_MAX || run.level < INT8_MIN || run.level > INT8_MAX) break;
      symbol[entry.count] = run.symbol;
      entry.gap[entry.count] = static_cast<uint8_t>(run.gap);
      entry.level[entry.count++] = static_cast<int8_t>(run.level);
      entry.bits = static_cast<uint8_t>(entry.bits + bits);
    }
    return entry;
  }

 private:
  PrefixReader prefix_;
  const uint8_t* const stream_;
  const Kind* const kinds_ = kinds_of_all();
  const uint64_t windows_;
  const TileParts parts_;
  RunEntry table_[kWindows];

  int bits_of_first(uint64_t window, Run* run) const {
    const uint16_t entry = prefix_.entry(window);
    run->symbol = static_cast<uint16_t>(entry >> 4);
    const Kind& kind = kinds_[run->symbol];
    return (entry & 15) + kind.gap_low + kind.less_one_low + 1;
  }
  // Of a window that has all bits of the run.
  void finish(uint64_t window, Run* run) const {
    const Kind& kind = kinds_[run->symbol];
    window >>= prefix_.entry(window) & 15;
    run->gap = kind.gap + low_of(window, kind.gap_low);
    set_level(window >> kind.gap_low, kind, run);
  }
  static void set_level(uint64_t window, const Kind& kind, Run* run) {
    const auto magnitude = static_cast<int32_t>(
        kind.less_one + 1 + static_cast<int32_t>(low_of(window, kind.less_one_low)));
    const int32_t minus = -static_cast<int32_t>(window >> kind.less_one_low & 1);
    run->level = (magnitude ^ minus) - minus;
  }
};

// What the runs of some tiles amount to.
struct RunCounts {
  int64_t symbol[kRunSymbols] = {};
  unsigned __int128 reach = 0;  // the places from their first gap to behind the last level
  int64_t most = 0;             // magnitude
  int64_t wrong = INT64_MAX;    // the first tile that does not end where it must

  void note(const Run& run, int64_t times) {
    symbol[run.symbol] += times;
    reach += static_cast<unsigned __int128>(run.gap + 1) * static_cast<uint64_t>(times);
    most = std::max<int64_t>(most, std::abs(run.level));
  }

  void add(const RunCounts& other) {
    for (int64_t i = 0; i < kRunSymbols; ++i) symbol[i] += other.symbol[i];
    reach += other.reach;
    most = std::max(most, other.most);
    wrong = std::min(wrong, other.wrong);
  }
};

// Counts a part's runs.
class RunCounter {
 public:
  explicit RunCounter(const RunCode& code) : code_(code) {}

  const RunCounts& count(int64_t part) {
    code_.read_part(code_.parts(), part, this, [&](const OpenTile& tile) {
      if (!tile.is_right()) counts_.wrong = std::min(counts_.wrong, tile.number);
    });
    for (uint64_t window = 0; window < code_.windows(); ++window) {
      if (hits_[window] == 0) continue;
      uint16_t symbol[kPerWindow];
      const RunEntry entry = code_.make_entry(window, symbol);
      for (int j = 0; j < entry.count; ++j)
        counts_.note({entry.gap[j], entry.level[j], symbol[j]}, hits_[window]);
    }
    return counts_;
  }

  int take(OpenTile* tile, uint64_t window) {
    const uint64_t own = window % kWindows;
    ++hits_[own];
    tile->i += code_.entry(own).count;
    return code_.entry(own).bits;
  }

  void one(OpenTile* tile) {
    Run run{};
    tile->at = code_.read(tile->at, tile->end, &run);
    counts_.note(run, 1);
    ++tile->i;
  }

 private:
  const RunCode& code_;
  int64_t hits_[kWindows] = {};
  RunCounts counts_;
};

// Reads runs, a few tiles at a time.
class RunReader {
 public:
  explicit RunReader(const RunCode& code)
      : code_(code),
        held_(std::min(kTilesAtOnce * kPrefixTile, code.parts().symbols())),
        gap_(new uint64_t[static_cast<size_t>(held_)]),
        level_(new int32_t[static_cast<size_t>(held_)]) {}

  // Calls visit(gap, level, n) for each tile of a part, in order; fails at the first that is wrong.
  template <class Visit>
  void read(const TileParts& parts, int64_t part, const Visit& visit) {
    code_.read_part(parts, part, this, [&](const OpenTile& tile) {
      if (!tile.is_right()) code_.prefix().fail_size(tile.number);
      visit(gap_.get() + tile.first, level_.get() + tile.first, tile.n);
    });
  }

  int take(OpenTile* tile, uint64_t window) {
    const RunEntry& entry = code_.entry(window);
    const int64_t place = tile->first + tile->i;
    for (int64_t j = 0; j < kPerWindow; ++j) {
      gap_[static_cast<size_t>(place + j)] = entry.gap[j];
      level_[static_cast<size_t>(place + j)] = entry.level[j];
    }
    tile->i += entry.count;
    return entry.bits;
  }

  void one(OpenTile* tile) {
    Run run{};
    tile->at = code_.read(tile->at, tile->end, &run);
    gap_[static_cast<size_t>(tile->first + tile->i)] = run.gap;
    level_[static_cast<size_t>(tile->first + tile->i++)] = run.level;
  }

 private:
  const RunCode& code_;
  const int64_t held_;  // of a message of few symbols no more than these
  const std::unique_ptr<uint64_t[]> gap_;
  const std::unique_ptr<int32_t[]> level_;
};

}  // namespace gcext::wire
