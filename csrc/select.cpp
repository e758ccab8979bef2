#include "select.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <tuple>

#include "stable.h"

namespace gcext {
namespace {

// 1. Sample the keys of |acc| and guess a bracket [low, high] around the k-th.
// 2. Stream: each part adds, stores, and collects its candidates, keys >= low, in order of index.
// 3. Refuse what is not finite.
// 4. Find the exact k-th key among the candidates; where there are too few or too many of them, by
//    a radix select over the stored sum, and collect again with that key as the bound.
// 5. Tally candidates above and at the key and their exact sum; ties go to the lowest indices.
// 6. Emit the chosen pairs, each part at its own offset, and mend the memory in the same breath.
//
// Sampling only guesses. Steps 4 to 6 are exact, so neither it nor the number of parts is ever
// seen.

constexpr int64_t kBlock = 4096;      // elements between two looks at the capacity
constexpr int64_t kGrain = 32768;     // elements that are worth a thread
constexpr int64_t kGroup = 64;        // consecutive elements sampled together: whole cache lines
constexpr int64_t kMaxGroups = 512;   // 32,768 samples: +-28 % of the candidates at p = 0.01
constexpr int64_t kUnsampled = 8192;  // below, every non-zero is a candidate
constexpr int64_t kSlack = 16;        // entries that the bodies may write past the end
constexpr int64_t kBypassBytes =
    4 << 20;  // an output larger than this is not read back from the cache
constexpr uint32_t kTopKey = kInfKey - 1;

// Room for uninitialised words. std::vector would zero them, which costs a pass.
class Words {
 public:
  uint32_t* data() const { return data_.get(); }
  int64_t capacity() const { return capacity_; }
  void reserve(int64_t n) {
    if (n <= capacity_) return;
    void* grown = std::realloc(data_.get(), static_cast<size_t>(n) * sizeof(uint32_t));
    if (grown == nullptr) throw std::bad_alloc();
    static_cast<void>(data_.release());
    data_.reset(static_cast<uint32_t*>(grown));
    capacity_ = n;
  }

 private:
  struct Free {
    void operator()(uint32_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint32_t, Free> data_;
  int64_t capacity_ = 0;
};

struct Part {
  int64_t begin = 0, end = 0;
  Words start, bits, keys;
  int64_t count = 0;      // candidates
  int64_t key_count = 0;  // of them within the bracket
  int64_t above = 0;      // of them above the bracket
  int64_t greater = 0, equal = 0, ties = 0, offset = 0;
  uint32_t highest = 0;
  bool overflow = false;  // more candidates than the limit: the bracket is useless
  uint64_t bins[kBins] = {};

  void reserve(int64_t n) {
    if (n <= bits.capacity()) return;
    const int64_t room = std::max(n, 2 * bits.capacity());
    start.reserve(room);
    bits.reserve(room);
  }
  Candidates tail() const { return {start.data() + count, bits.data() + count}; }
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

struct Bracket {
  uint32_t low = 1, high = kTopKey;
};

// The key below which (from the top) `rank` of the samples lie, by a histogram with interpolation.
uint32_t key_at_rank(const std::vector<int32_t>& counts, int shift, double rank) {
  double passed = 0;
  for (int64_t bucket = static_cast<int64_t>(counts.size()) - 1; bucket >= 0; --bucket) {
    if (counts[bucket] > 0 && passed + counts[bucket] >= rank) {
      const double share = std::max(0.0, (rank - passed) / counts[bucket]);
      const double width = static_cast<double>(uint32_t{1} << shift);
      const double key = (static_cast<double>(bucket) + 1 - share) * width;
      return std::max(uint32_t{1}, std::min(kTopKey, static_cast<uint32_t>(key)));
    }
    passed += counts[bucket];
  }
  return 1;
}

Bracket sample(const SelectTable& table, const Source& source, int64_t n, int64_t k) {
  if (n <= kUnsampled) return {};
  constexpr int kShift = 19;  // 8 bits of exponent and 4 of mantissa
  const int64_t groups = std::min(kMaxGroups, n / kGroup / 8) & ~int64_t{1};
  const int64_t stratum = n / kGroup / groups;
  std::vector<uint32_t> places(static_cast<size_t>(groups * kGroup + kSlack));
  std::vector<uint32_t> bits(places.size());
  std::vector<int32_t> counts((kInfKey >> kShift) + 1);
  Source quiet = source;
  quiet.out = nullptr;
  std::vector<int64_t> at(static_cast<size_t>(groups));
  uint64_t state = 0x9e3779b97f4a7c15u;
  for (int64_t g = 0; g < groups; ++g) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // anywhere within its stratum
    at[g] = (g * stratum + static_cast<int64_t>(state >> 33) % stratum) * kGroup;
  }
  for (int64_t g = 0; g < groups; ++g) {
    constexpr int64_t kAhead = 8;  // every group misses the cache and the TLB: overlap the misses
    if (g + kAhead < groups) {
      for (int64_t i = 0; i < kGroup; i += 16) {
        __builtin_prefetch(source.tensor + at[g + kAhead] + i);
        if (source.memory != nullptr) __builtin_prefetch(source.memory + at[g + kAhead] + i);
      }
    }
    uint32_t top = 0;
    table.stream(quiet, at[g], kGroup, false, 0, 0,
                 {places.data() + g * kGroup, bits.data() + g * kGroup}, &top);
    for (int64_t i = 0; i < kGroup; ++i) {
      uint32_t& key = bits[g * kGroup + i];
      key = std::min(key & 0x7fffffffu, kInfKey);
      ++counts[key >> kShift];
    }
  }
  const double samples = static_cast<double>(groups * kGroup);
  const double rank = samples * (static_cast<double>(k) / static_cast<double>(n));
  const uint32_t middle = key_at_rank(counts, kShift, rank);
  // Neighbours in a layer resemble each other, so the samples are not independent. The spread of
  // the rank is taken from the groups themselves: two neighbouring strata differ by chance alone.
  double variance = 0;
  for (int64_t g = 0; g < groups; g += 2) {
    int difference = 0;
    for (int64_t i = 0; i < kGroup; ++i) {
      difference += (bits[g * kGroup + i] >= middle) - (bits[(g + 1) * kGroup + i] >= middle);
    }
    variance += static_cast<double>(difference) * difference;
  }
  const double margin = 5 * std::sqrt(variance) + 8;
  Bracket bracket;
  bracket.low = rank + margin >= samples ? 1 : key_at_rank(counts, kShift, rank + margin);
  bracket.high = rank - margin <= 1 ? kTopKey : key_at_rank(counts, kShift, rank - margin);
  return bracket;
}

// Collects a part's candidates; storing the sum is part of the same pass when source.out is set.
void stream_part(const SelectTable& table, const Source& source, Part& part, uint32_t low,
                 int64_t limit) {
  const bool aligned = reinterpret_cast<uintptr_t>(source.out) % 64 == 0;
  const bool bypass = source.out != nullptr && source.out != source.memory && aligned &&
                      (part.end - part.begin) * static_cast<int64_t>(sizeof(float)) > kBypassBytes;
  for (int64_t at = part.begin; at < part.end; at += kBlock) {
    part.reserve(part.count + kBlock + kSlack);
    part.count +=
        table.stream(source, at, std::min(kBlock, part.end - at), bypass,
                     static_cast<uint32_t>(at - part.begin), low, part.tail(), &part.highest);
    if (part.count > limit) {
      part.overflow = true;
      part.count = 0;
      low = UINT32_MAX;  // store on, collect no more
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
    const uint32_t above = (keys[i] & 0x7fffffffu) - low;
    if (above <= high - low) ++counts[above >> shift];
  }
}

// The k-th key among all candidates, of which there are at least k.
uint32_t kth_candidate(const SelectTable& table, std::vector<Part>& parts, Bracket bracket,
                       int64_t k, bool parallel) {
  const auto within = [&](uint32_t low, uint32_t high) {
    for_parts(parts, parallel, [&](Part& part) {
      part.keys.reserve(part.count + kSlack);
      part.above = 0;
      part.key_count =
          table.narrow(part.bits.data(), part.count, low, high, part.keys.data(), &part.above);
    });
    int64_t above = 0;
    for (const Part& part : parts) above += part.above;
    return above;
  };
  int64_t above = within(bracket.low, bracket.high);
  if (above >= k) {  // the guess was low: look above it
    bracket = {bracket.high + 1, kTopKey};
    above = within(bracket.low, bracket.high);
  }
  return radix_select(bracket.low, bracket.high, k - above,
                      [&](uint32_t low, uint32_t high, int shift, int64_t* to) {
                        for (const Part& part : parts)
                          count_digits(part.keys.data(), part.key_count, low, high, shift, to);
                      });
}

// The k-th key of the whole sum, and the candidates anew: all above it, and as many at it as are
// due.
uint32_t collect_again(const SelectTable& table, const Source& sum, std::vector<Part>& parts,
                       int64_t k) {
  const auto visit = [&](const Part& part, uint32_t low, const auto& body) {
    Words places, bits;
    places.reserve(kBlock + kSlack);
    bits.reserve(kBlock + kSlack);
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
      for (int64_t i = 0; i < n; ++i) ++((bits[i] & 0x7fffffffu) > key ? part.greater : part.equal);
    });
  });
  int64_t due = k;
  for (const Part& part : parts) due -= part.greater;
  for (Part& part : parts) {
    part.ties = std::max<int64_t>(0, std::min(due, part.equal));
    due -= part.ties;
  }
  for_parts(parts, true, [&](Part& part) {
    part.overflow = false;
    part.count = 0;
    part.reserve(part.greater + part.ties + kSlack);
    int64_t ties = part.ties;
    visit(part, key, [&](int64_t at, const uint32_t* places, const uint32_t* bits, int64_t n) {
      for (int64_t i = 0; i < n; ++i) {
        if ((bits[i] & 0x7fffffffu) == key && --ties < 0) continue;
        part.start.data()[part.count] = static_cast<uint32_t>(at - part.begin) + places[i];
        part.bits.data()[part.count++] = bits[i];
      }
    });
  });
  return key;
}

int64_t first_not_finite(const SelectTable& table, const float* x, int64_t n) {
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t end = std::min(n, at + kBlock);
    if (table.highest(x + at, end - at) < kInfKey) continue;
    for (int64_t i = at; i < end; ++i) {
      if (table.highest(x + i, 1) >= kInfKey) return i;
    }
  }
  return -1;
}

bool all_finite(const SelectTable& table, std::vector<Part>& parts, const float* x) {
  for_parts(parts, parts.size() > 1,
            [&](Part& p) { p.highest = table.highest(x + p.begin, p.end - p.begin); });
  bool finite = true;
  for (Part& part : parts) {
    finite = finite && part.highest < kInfKey;
    part.highest = 0;
  }
  return finite;
}

struct Result {
  void* index;
  bool wide;  // index is int64
  float* value;
  int64_t* info;
};

void refuse(int64_t* info, SelectStatus status, int64_t where) {
  info[kInfoStatus] = status;
  info[kInfoWhere] = where;
}

// in_place: source.out is also the memory, so tensor must be known to be finite before it is
// touched.
void select_cpu(const Source& source, int64_t n, int64_t k, bool in_place, bool ternary,
                const Result& to) {
  const SelectTable& table = GCEXT_TABLE(select_table);
  const KernelFpEnv env;
  std::vector<Part> parts = cut(n);
  if (in_place && !all_finite(table, parts, source.tensor)) {
    return refuse(to.info, kSelectTensor, first_not_finite(table, source.tensor, n));
  }
  const Bracket bracket = sample(table, source, n, k);
  const int64_t limit = 4 * k + n / 8 + kUnsampled;
  for_parts(parts, parts.size() > 1, [&](Part& part) {
    part.reserve((part.end - part.begin) * (static_cast<double>(k) / static_cast<double>(n)) *
                     1.25 +
                 2 * kBlock);
    stream_part(table, source, part, bracket.low, limit);
  });

  int64_t count = 0;
  uint32_t highest = 0;
  bool overflow = false;
  for (const Part& part : parts) {
    count += part.count;
    highest = std::max(highest, part.highest);
    overflow = overflow || part.overflow;
  }
  if (highest >= kInfKey) {
    int64_t where = in_place ? -1 : first_not_finite(table, source.tensor, n);
    if (where >= 0) return refuse(to.info, kSelectTensor, where);
    if (!in_place && source.memory != nullptr) where = first_not_finite(table, source.memory, n);
    if (where >= 0) return refuse(to.info, kSelectMemory, where);
    where = source.out != nullptr ? first_not_finite(table, source.out, n) : -1;
    return refuse(to.info, kSelectOverflow, where);
  }

  uint32_t key;
  const bool parallel = parts.size() > 1 && count > kGrain;
  if (overflow || (count < k && bracket.low > 1)) {
    const Source stored{source.out, nullptr, nullptr, 1.0f, 1.0f};
    const Source again{source.tensor, nullptr, nullptr, source.a, source.b};
    key = collect_again(table, source.out != nullptr ? stored : again, parts, k);
  } else {
    key = count <= k ? bracket.low : kth_candidate(table, parts, bracket, k, parallel);
  }

  for_parts(parts, parallel, [&](Part& part) {
    part.greater = part.equal = 0;
    table.tally(part.bits.data(), part.count, key, &part.greater, &part.equal, part.bins);
  });
  int64_t due = k;
  for (const Part& part : parts) due -= part.greater;
  int64_t chosen = 0;
  uint64_t bins[kBins] = {};
  for (Part& part : parts) {
    part.ties = std::max<int64_t>(0, std::min(due, part.equal));
    due -= part.ties;
    part.offset = chosen;
    chosen += part.greater + part.ties;
    for (int bin = 0; bin < kBins; ++bin) bins[bin] += part.bins[bin];
    bins[bin_of(key)] += static_cast<uint64_t>(part.ties) * mantissa_of(key);
  }
  const uint32_t mean = chosen > 0 ? exact_mean_bits(bins, static_cast<uint64_t>(chosen)) : 0;

  for_parts(parts, parallel, [&](Part& part) {
    // Candidates up to `split` may be ties; from there on the part has used up its share of them.
    int64_t split = part.count;
    if (part.ties < part.equal) {
      split = 0;
      for (int64_t ties = part.ties; ties > 0; ++split)
        ties -= (part.bits.data()[split] & 0x7fffffffu) == key;
    }
    int64_t at = part.offset;
    const auto emit = [&](int64_t from, int64_t until, uint32_t low) {
      const Candidates c{part.start.data() + from, part.bits.data() + from};
      if (to.wide) {
        at += table.emit64(c, until - from, low, part.begin, ternary, mean,
                           static_cast<int64_t*>(to.index) + at, to.value + at, source.out);
      } else {
        at += table.emit32(c, until - from, low, part.begin, ternary, mean,
                           static_cast<int32_t*>(to.index) + at, to.value + at, source.out);
      }
    };
    emit(0, split, key);
    emit(split, part.count, key + 1);
  });
  to.info[kInfoCount] = chosen;
  to.info[kInfoMean] = mean;
}

std::tuple<Tensor, Tensor, Tensor> select(const Tensor& tensor, const std::optional<Tensor>& memory,
                                          const std::optional<Tensor>& out, int64_t k, double a,
                                          double b, bool ternary) {
  check_dense(tensor, ScalarType::Float, "select: tensor");
  const int64_t n = tensor.numel();
  GCEXT_CHECK(k <= n && (k > 0 || n == 0), "select: k must be in [1, numel], got ", k, " of ", n,
              ".");
  Source source{tensor.const_data_ptr<float>(), nullptr, nullptr, static_cast<float>(a),
                static_cast<float>(b)};
  for (const auto* each : {&memory, &out}) {
    if (!each->has_value()) continue;
    check_dense(**each, ScalarType::Float, "select: memory and out");
    GCEXT_CHECK((*each)->numel() == n, "select: memory and out must have ", n,
                " elements like tensor, got ", (*each)->numel(), ".");
  }
  GCEXT_CHECK(out.has_value() || !memory.has_value(),
              "select: memory needs out. Pass where the new one goes.");
  const bool in_place = out.has_value() && !memory.has_value();
  if (out.has_value()) {
    source.out = out->mutable_data_ptr<float>();
    source.memory = in_place ? source.out : memory->const_data_ptr<float>();
  }
  const bool wide = n > INT32_MAX;
  Tensor index = empty(k, wide ? ScalarType::Long : ScalarType::Int, tensor);
  Tensor value = empty(k, ScalarType::Float, tensor);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  int64_t* field = info.mutable_data_ptr<int64_t>();
  std::fill(field, field + kInfoSize, 0);
  if (k > 0) {
    try {
      select_cpu(source, n, k, in_place, ternary,
                 {index.mutable_data_ptr(), wide, value.mutable_data_ptr<float>(), field});
    } catch (const std::bad_alloc&) {
      refuse(field, kSelectNoMemory, -1);
    }
  }
  return {index, value, info};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) {
  m.def(
      "select(Tensor tensor, Tensor? memory, Tensor(a!)? out, int k, float a, float b, bool "
      "ternary)"
      " -> (Tensor index, Tensor value, Tensor info)");
}

STABLE_TORCH_LIBRARY_IMPL(gcext, CPU, m) { m.impl("select", TORCH_BOX(&select)); }

}  // namespace gcext
