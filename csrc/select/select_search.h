// The search behind select.cpp: parts and their candidates, the sampled bracket (step 1), the
// stream (step 2), and the exact k-th key (step 4). Included by select.cpp alone.
#pragma once

#include <cmath>
#include <functional>
#include <memory>

#include "../common/stable.h"
#include "select.h"

namespace gcext {
namespace {

constexpr int64_t kBlock = 4096;      // elements between two checks of the capacity
constexpr int64_t kGrain = 32768;     // elements that are worth a thread
constexpr int64_t kSerial = 8192;     // candidates that one thread settles sooner than two
constexpr int64_t kGroup = 64;        // consecutive elements sampled together: whole cache lines
constexpr int64_t kMaxGroups = 512;   // 32,768 samples: +-28 % of the candidates at p = 0.01
constexpr int64_t kUnsampled = 8192;  // below, every non-zero is a candidate
constexpr int64_t kSlack = 16;        // entries that the bodies may write past the end
constexpr int64_t kBypassBytes = 4 << 20;  // a larger output is not read back from the cache
constexpr uint32_t kTopKey = kInfKey - 1;

// Leaves new elements uninitialised: zeroing them would cost a pass.
template <class T>
struct Uninitialised : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Uninitialised<U>;
  };
  template <class U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
};
using Words = std::vector<uint32_t, Uninitialised<uint32_t>>;

struct Part {
  int64_t begin = 0, end = 0;
  Words start, bits, keys;
  int64_t count = 0;      // candidates
  int64_t key_count = 0;  // of them within the bracket
  int64_t above = 0;      // of them above the bracket
  int64_t greater = 0, equal = 0, ties = 0, offset = 0;
  uint32_t highest = 0;
  bool no_memory = false;
  bool overflow = false;  // more candidates than the limit: the bracket is useless
  uint64_t bins[kBins] = {};

  void reserve(int64_t n) {
    const int64_t size = static_cast<int64_t>(bits.size());
    if (n <= size) return;
    start.resize(static_cast<size_t>(std::max(n, 2 * size)));
    bits.resize(static_cast<size_t>(std::max(n, 2 * size)));
  }
  // Reserves one more block. Where memory runs out the part drops its candidates, but the pass goes
  // on: a sum that is stored in place must not stop half-way.
  bool reserve_block() {
    if (no_memory) return false;
    try {
      reserve(count + kBlock + kSlack);
    } catch (const std::bad_alloc&) {
      no_memory = true;
      count = 0;
    }
    return !no_memory;
  }
  Candidates tail() { return {start.data() + count, bits.data() + count}; }
};

std::vector<Part> cut(int64_t n) {
  const int64_t most = int64_t{1} << 31;  // a place in a part is 32 bits
  const int64_t parts = std::max(parts_for(n, kGrain), (n + most - 1) / most);
  const int64_t step = ((n + parts - 1) / parts + kGroup - 1) / kGroup * kGroup;
  std::vector<Part> result(static_cast<size_t>(parts));
  for (int64_t i = 0; i < parts; ++i) {
    result[i].begin = std::min(n, i * step);
    result[i].end = std::min(n, (i + 1) * step);
  }
  return result;
}

template <class Body>
void for_parts(std::vector<Part>& parts, bool parallel, const Body& body) {
  if (parallel) {
    parallel_parts(static_cast<int64_t>(parts.size()), [&](int64_t i) { body(parts[i]); });
  } else {
    for (Part& part : parts) body(part);
  }
}

// What the keys above the k-th leave of k goes to ties, the first parts first.
void share_ties(std::vector<Part>& parts, int64_t k) {
  for (const Part& part : parts) k -= part.greater;
  for (Part& part : parts) {
    part.ties = std::max<int64_t>(0, std::min(k, part.equal));
    k -= part.ties;
  }
}

struct Bracket {
  uint32_t low = 1, high = kTopKey;
};

// Sampled keys with a histogram over their upper bits, which makes an order statistic one bucket's
// work.
class Sample {
 public:
  // Whole cache lines, one group anywhere within each of equal strata.
  Sample(const SelectTable& table, const Source& source, int64_t n)
      : groups_(std::min(kMaxGroups, n / kGroup / 8) & ~int64_t{1}),
        keys_(static_cast<size_t>(groups_ * kGroup + kSlack)),
        counts_((kInfKey >> kShift) + 1) {
    Source quiet = source;
    quiet.out = nullptr;
    const int64_t stratum = n / kGroup / groups_;
    std::vector<int64_t> at(static_cast<size_t>(groups_));
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (int64_t g = 0; g < groups_; ++g) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      at[g] = (g * stratum + static_cast<int64_t>(state >> 33) % stratum) * kGroup;
    }
    uint32_t places[kGroup + kSlack], highest = 0;
    for (int64_t g = 0; g < groups_; ++g) {
      // Every group misses the cache and the TLB: overlap the misses.
      if (g + kAhead < groups_) prefetch(source, at[g + kAhead]);
      table.stream(quiet, at[g], kGroup, false, 0, 0, {places, keys_.data() + g * kGroup},
                   &highest);
    }
    keys_.resize(static_cast<size_t>(groups_ * kGroup));
    for (uint32_t& key : keys_) {
      key = std::min(key_of(key), kInfKey);
      ++counts_[key >> kShift];
    }
  }

  double size() const { return static_cast<double>(keys_.size()); }

  // The sampled key of that rank, the largest being 1, exactly: with feedback the magnitudes end in
  // a cliff just below the last threshold, and an interpolated bound would fall off it.
  uint32_t at_rank(double rank) const {
    int64_t left = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(rank)));
    if (left > static_cast<int64_t>(keys_.size())) return 1;
    uint32_t bucket = static_cast<uint32_t>(counts_.size() - 1);
    while (left > counts_[bucket]) left -= counts_[bucket--];
    std::vector<uint32_t> within;
    within.reserve(static_cast<size_t>(counts_[bucket]));
    for (uint32_t key : keys_) {
      if (key >> kShift == bucket) within.push_back(key);
    }
    std::nth_element(within.begin(), within.begin() + (left - 1), within.end(), std::greater<>());
    return std::max(uint32_t{1}, std::min(kTopKey, within[static_cast<size_t>(left - 1)]));
  }

  // Standard deviation of the number of samples from `key` on. Neighbours in a layer resemble each
  // other, so the samples are not independent; but two neighbouring strata differ by chance alone.
  double spread(uint32_t key) const {
    double variance = 0;
    for (int64_t g = 0; g < groups_; g += 2) {
      const uint32_t* pair = keys_.data() + g * kGroup;
      int difference = 0;
      for (int64_t i = 0; i < kGroup; ++i)
        difference += (pair[i] >= key) - (pair[kGroup + i] >= key);
      variance += static_cast<double>(difference) * difference;
    }
    return std::sqrt(variance);
  }

 private:
  static constexpr int kShift = 19;  // 8 bits of exponent and 4 of mantissa
  static constexpr int64_t kAhead = 8;

  static void prefetch(const Source& source, int64_t at) {
    for (int64_t i = at; i < at + kGroup; i += 16) {
      __builtin_prefetch(source.tensor + i);
      if (source.memory != nullptr) __builtin_prefetch(source.memory + i);
    }
  }

  int64_t groups_;
  std::vector<uint32_t> keys_;
  std::vector<int32_t> counts_;
};

// Bounds that hold the k-th key but for a chance of 5 sigma on either side.
Bracket guess(const SelectTable& table, const Source& source, int64_t n, int64_t k) {
  if (n <= kUnsampled) return {};
  const Sample sample(table, source, n);
  const double rank = sample.size() * (static_cast<double>(k) / static_cast<double>(n));
  const double margin = 5 * sample.spread(sample.at_rank(rank)) + 8;
  return {sample.at_rank(rank + margin),
          rank - margin <= 1 ? kTopKey : sample.at_rank(rank - margin)};
}

// Collects a part's candidates; storing the sum is part of the same pass when source.out is set.
void stream_part(const SelectTable& table, const Source& source, Part& part, uint32_t low,
                 int64_t limit) {
  const bool aligned = reinterpret_cast<uintptr_t>(source.out) % 64 == 0;
  const bool bypass = source.out != nullptr && source.out != source.memory && aligned &&
                      (part.end - part.begin) * static_cast<int64_t>(sizeof(float)) > kBypassBytes;
  for (int64_t at = part.begin; at < part.end; at += kBlock) {
    low = part.reserve_block() ? low : INT32_MAX;
    part.count +=
        table.stream(source, at, std::min(kBlock, part.end - at), bypass,
                     static_cast<uint32_t>(at - part.begin), low, part.tail(), &part.highest);
    if (part.count > limit) {
      part.overflow = true;
      part.count = 0;
      low = INT32_MAX;  // above every key: store on, collect no more
    }
  }
}

// The rank-th largest key (rank from 1) of those in [low, high]: 11 bits a round, three at most.
// histogram(low, high, shift, counts) counts the keys within the bounds by (key - low) >> shift.
template <class Histogram>
uint32_t radix_select(uint32_t low, uint32_t high, int64_t rank, const Histogram& histogram) {
  constexpr int kDigit = 11;
  std::vector<int64_t> counts(size_t{1} << kDigit);
  while (low < high) {
    const int length = 32 - __builtin_clz(high - low);
    const int shift = std::max(0, length - kDigit);
    std::fill(counts.begin(), counts.end(), 0);
    histogram(low, high, shift, counts.data());
    uint32_t digit = (high - low) >> shift;
    while (digit > 0 && rank > counts[digit]) rank -= counts[digit--];
    low += digit << shift;
    high = std::min(high, low + ((uint32_t{1} << shift) - 1));
  }
  return low;
}

void count_digits(const uint32_t* keys, int64_t n, uint32_t low, uint32_t high, int shift,
                  int64_t* counts) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t above = key_of(keys[i]) - low;
    if (above <= high - low) ++counts[above >> shift];
  }
}

// The k-th key among all candidates, of which there are at least k.
uint32_t kth_candidate(const SelectTable& table, std::vector<Part>& parts, Bracket bracket,
                       int64_t k, bool parallel) {
  const auto within = [&](uint32_t low, uint32_t high) {
    for_parts(parts, parallel, [&](Part& part) {
      part.keys.resize(static_cast<size_t>(part.count + kSlack));
      part.above = 0;
      part.key_count =
          table.narrow(part.bits.data(), part.count, low, high, part.keys.data(), &part.above);
    });
    int64_t above = 0;
    for (const Part& part : parts) above += part.above;
    return above;
  };
  int64_t above = within(bracket.low, bracket.high);
  if (above >= k) {  // the guess was low: search above it
    bracket = {bracket.high + 1, kTopKey};
    above = within(bracket.low, bracket.high);
  }
  return radix_select(bracket.low, bracket.high, k - above,
                      [&](uint32_t low, uint32_t high, int shift, int64_t* to) {
                        for (const Part& part : parts)
                          count_digits(part.keys.data(), part.key_count, low, high, shift, to);
                      });
}

// The k-th key of the whole sum, and the candidates anew: all above it, and the ties that count.
uint32_t collect_again(const SelectTable& table, const Source& sum, std::vector<Part>& parts,
                       int64_t k) {
  const auto visit = [&](const Part& part, uint32_t low, const auto& body) {
    Words places(kBlock + kSlack), bits(kBlock + kSlack);
    uint32_t top = 0;
    for (int64_t at = part.begin; at < part.end; at += kBlock) {
      const int64_t n = table.stream(sum, at, std::min(kBlock, part.end - at), false, 0, low,
                                     {places.data(), bits.data()}, &top);
      body(at, places.data(), bits.data(), n);
    }
  };
  int64_t non_zeros = 0;
  for_parts(parts, true, [&](Part& part) {
    part.equal = 0;
    visit(part, 1, [&](int64_t, const uint32_t*, const uint32_t*, int64_t n) { part.equal += n; });
  });
  for (const Part& part : parts) non_zeros += part.equal;
  uint32_t key = 1;
  if (non_zeros > k) {
    key = radix_select(1, kTopKey, k, [&](uint32_t low, uint32_t high, int shift, int64_t* counts) {
      std::vector<std::vector<int64_t>> own(parts.size(), std::vector<int64_t>(2048));
      parallel_parts(static_cast<int64_t>(parts.size()), [&](int64_t i) {
        visit(parts[i], low, [&](int64_t, const uint32_t*, const uint32_t* bits, int64_t n) {
          count_digits(bits, n, low, high, shift, own[i].data());
        });
      });
      for (const auto& part : own) {
        for (size_t digit = 0; digit < part.size(); ++digit) counts[digit] += part[digit];
      }
    });
  }
  for_parts(parts, true, [&](Part& part) {
    part.greater = part.equal = 0;
    visit(part, key, [&](int64_t, const uint32_t*, const uint32_t* bits, int64_t n) {
      for (int64_t i = 0; i < n; ++i) ++(key_of(bits[i]) > key ? part.greater : part.equal);
    });
  });
  share_ties(parts, k);
  for_parts(parts, true, [&](Part& part) {
    part.overflow = false;
    part.count = 0;
    part.reserve(part.greater + part.ties + kSlack);
    int64_t ties = part.ties;
    visit(part, key, [&](int64_t at, const uint32_t* places, const uint32_t* bits, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        if (key_of(bits[i]) == key && --ties < 0) continue;
        part.start.data()[part.count] = static_cast<uint32_t>(at - part.begin) + places[i];
        part.bits.data()[part.count++] = bits[i];
      }
    });
  });
  return key;
}

}  // namespace
}  // namespace gcext
