// Step 1 of select.cpp: the bracket around the k-th key, guessed from a sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "select_parts.h"

namespace gcext {
namespace {

constexpr int64_t kMaxGroups = 512;  // 32,768 samples: +-28 % of the candidates at p = 0.01
constexpr int64_t kMinGroups = 16;
constexpr int64_t kUnsampled = 8192;  // up to here a histogram of samples costs more than it saves
constexpr int64_t kFew = 512;         // up to here every non-zero is a candidate

// Groups that are sampled of n elements, an even number. A sample costs about as much as a
// candidate, and of s samples the margin is in proportion to n/sqrt(s): n^(2/3) balances the two.
int64_t sample_groups(int64_t n) {
  if (n <= kUnsampled) return 0;
  const int64_t samples = static_cast<int64_t>(std::pow(static_cast<double>(n), 2.0 / 3.0));
  return std::min(kMaxGroups, std::max(kMinGroups, samples / kGroup)) & ~int64_t{1};
}

struct Bracket {
  uint32_t low = 1, high = kTopKey;
  bool many = true;  // candidates: see Candidates
};

// Below this share of candidates most vectors hold none, and it pays to look.
constexpr double kManyShare = 0.005;

// Sampled keys with a histogram over their upper bits, which makes an order statistic one bucket's
// work. The buffers serve one selection after another.
class Sample {
 public:
  // Whole cache lines, one group anywhere within each of equal strata.
  void draw(const SelectTable& table, const Selection& selection) {
    const int64_t n = selection.n;
    groups_ = sample_groups(n);
    reserve(groups_);
    std::fill(counts_.begin(), counts_.end(), 0);
    const int64_t stratum = n / kGroup / groups_;
    uint64_t state = 0x9e3779b97f4a7c15u;
    for (int64_t g = 0; g < groups_; ++g) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      at_[g] = (g * stratum + static_cast<int64_t>(state >> 33) % stratum) * kGroup;
    }
    uint32_t places[kGroup + kSlack];
    highest_ = 0;
    uint32_t* to = keys_.data();
    Walk ahead(selection), walk(selection);
    // Every group misses the cache and the TLB: overlap the misses.
    const auto prefetch = [&](int64_t g) {
      if (g >= groups_) return;
      ahead.over(at_[g], at_[g] + kGroup, [&](int64_t tensor, int64_t from, int64_t until) {
        const HostSource& source = selection.tensors[tensor].source;
        for (int64_t i = from; i < until; i += 16) {
          source.half.at != nullptr ? __builtin_prefetch(source.half.at + 2 * i)
                                    : __builtin_prefetch(source.tensor + i);
          if (source.memory != nullptr) __builtin_prefetch(source.memory + i);
        }
      });
    };
    for (int64_t g = 0; g < kAhead; ++g) prefetch(g);
    for (int64_t g = 0; g < groups_; ++g) {
      prefetch(g + kAhead);
      walk.over(at_[g], at_[g] + kGroup, [&](int64_t tensor, int64_t from, int64_t until) {
        HostSource quiet = selection.tensors[tensor].source;
        quiet.out = nullptr;
        to += table.stream(quiet, from, until - from, false, 0, 0, {places, to, true}, &highest_);
      });
    }
    for (int64_t i = 0; i < samples(); ++i) {
      keys_[i] = std::min(key_of(keys_[i]), kInfKey);
      ++counts_[keys_[i] >> kShift];
    }
  }

  // For samples of so many groups, so that drawing needs no memory.
  void reserve(int64_t groups) {
    if (static_cast<int64_t>(at_.size()) >= groups) return;
    at_.resize(static_cast<size_t>(groups));
    keys_.resize(static_cast<size_t>(groups * kGroup + kSlack));
    within_.resize(keys_.size());
    counts_.resize((kInfKey >> kShift) + 1);
  }

  double size() const { return static_cast<double>(samples()); }

  // The sampled key of that rank, the largest being 1, exactly: with feedback the magnitudes end in
  // a cliff just below the last threshold, and an interpolated bound would fall off it.
  uint32_t at_rank(const SelectTable& table, double rank) {
    int64_t left = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(rank)));
    if (left > samples()) return 1;
    uint32_t bucket = std::min(highest_, kInfKey) >> kShift;
    while (left > counts_[bucket]) left -= counts_[bucket--];
    int64_t above = 0;
    const int64_t count = table.narrow(keys_.data(), samples(), bucket << kShift,
                                       ((bucket + 1) << kShift) - 1, within_.data(), &above);
    std::nth_element(within_.begin(), within_.begin() + (left - 1), within_.begin() + count,
                     std::greater<>());
    return std::max(uint32_t{1}, std::min(kTopKey, within_[static_cast<size_t>(left - 1)]));
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

  int64_t samples() const { return groups_ * kGroup; }

  int64_t groups_ = 0;
  uint32_t highest_ = 0;
  std::vector<int64_t> at_;
  Words keys_, within_;
  std::vector<int32_t> counts_;
};

// The bracket of a selection that fits a core's cache: its lower bound alone, from one cache line
// in eight.
Bracket guess_few(const SelectTable& table, const Selection& selection) {
  constexpr int64_t kLine = 16, kStep = 8 * kLine;
  HostSource source = selection.tensors[0].source;
  source.out = nullptr;
  uint32_t keys[kUnsampled / 8 + kSlack], places[kLine + kSlack], highest = 0;
  int64_t samples = 0;
  for (int64_t at = 0; at + kLine <= selection.n; at += kStep)
    samples +=
        table.stream(source, at, kLine, false, 0, 0, {places, keys + samples, true}, &highest);
  for (int64_t i = 0; i < samples; ++i) keys[i] = key_of(keys[i]);
  const double rank = static_cast<double>(samples) * static_cast<double>(selection.k) /
                      static_cast<double>(selection.n);
  const int64_t least = static_cast<int64_t>(rank + 5 * std::sqrt(rank)) + 4;
  if (least >= samples / 2) return {};
  std::nth_element(keys, keys + least, keys + samples, std::greater<>());
  return {std::max(uint32_t{1}, std::min(kTopKey, keys[least])), kTopKey,
          static_cast<double>(least) > kManyShare * static_cast<double>(samples)};
}

// Bounds that hold the k-th key but for a chance of 4 sigma on either side: where they do not, the
// tensor is read some five times more, which is so rare that closer bounds save more.
Bracket guess(const SelectTable& table, const Selection& selection, Sample& sample) {
  if (selection.k == 0) return {INT32_MAX, INT32_MAX, false};
  if (selection.n <= kFew || (selection.n <= kUnsampled && selection.count > 1)) return {};
  if (selection.n <= kUnsampled) return guess_few(table, selection);
  sample.draw(table, selection);
  const double rank =
      sample.size() * (static_cast<double>(selection.k) / static_cast<double>(selection.n));
  const double margin = 4 * sample.spread(sample.at_rank(table, rank)) + 4;
  return {sample.at_rank(table, rank + margin),
          rank - margin <= 1 ? kTopKey : sample.at_rank(table, rank - margin),
          rank + margin > kManyShare * sample.size()};
}

}  // namespace
}  // namespace gcext
