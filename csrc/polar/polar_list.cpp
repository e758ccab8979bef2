// polar_list: list and randomised successive-cancellation encoders, a block at a time: a list of L
// candidates (Tal & Vardy 2015), and the randomised rounding of Korada & Urbanke 2010. Layout as in
// polar.h.
//
//   LLRs     16-bit integers, kSteps a nat;  f(a, b) = sign sign (min - s(||a|-|b||) + s(|a|+|b|)),
//            s(d) = ln(1 + exp(-d)), a table;  g as in polar.h, saturating at +-32767
//   metric   of a path: the sum over decisions u of ln(1 + exp(-(1 - 2u) L)), frozen ones too
//   list     at a free index every path goes both ways and the L least metrics stay; equal ones:
//            the older path and u = 0 first
//   twice    a second, dithered pass: each LLR is larger or smaller by up to 3/10, by a hash of its
//            index. Which paths a list loses is chance; a second pass helps more than a list of
//            twice the length (at N = 1024, R = 0.9, L = 32: .0159, once with 64 .0158, twice
//            .0156). Of all 2L last codewords the one of the least weighted distance to the source
//            is sent; equal ones: the first time, then the least metric
//   random   u = 1 with probability 1 / (1 + exp(L)), by a counter: hash(seed, block, index)
//
// A node that is all frozen adds up its symbols' own penalties, with which its leaves' agree but
// for rounding. The tables come from sums and products alone, so they are the same everywhere.
#include "../common/scalar.h"
#include "polar_code.h"

namespace gcext {
namespace {

constexpr int kSteps = 128;          // a nat
constexpr int kReach = 22 * kSteps;  // exp(-22) is below 2^-31
constexpr int kClamp = 32767;
constexpr int kMaxList = 32;

struct Tables {
  int16_t soft[kReach];  // s(d)
  uint32_t one[kReach];  // 2^32 / (1 + exp(d))

  Tables() {
    // exp(-1/128) by its series; then every exp(-d/128) is a product.
    double ratio = 1, term = 1;
    for (int i = 1; i < 12; ++i) {
      term *= -1.0 / kSteps / i;
      ratio += term;
    }
    double power = 1;
    for (int d = 0; d < kReach; ++d, power *= ratio) {
      // ln(1 + x) = 2 atanh(x / (2 + x)), and that is at most 1/3.
      const double y = power / (2 + power);
      double sum = 0, part = y;
      for (int i = 1; i < 60; i += 2, part *= y * y) sum += part / i;
      soft[d] = static_cast<int16_t>(2 * sum * kSteps + 0.5);
      one[d] = static_cast<uint32_t>(4294967296.0 * power / (1 + power));
    }
  }
  int soft_of(int d) const { return d < kReach ? soft[d] : 0; }
  // The penalty of deciding 0 (or 1 where `u`) against the LLR.
  int penalty(int llr, bool u) const {
    const int against = u ? llr : -llr;
    return (against > 0 ? against : 0) + soft_of(llr < 0 ? -llr : llr);
  }
};

const Tables& tables() {
  static const Tables made;
  return made;
}

class Coder {
 public:
  Coder(const PolarCode& code, int list, const std::optional<int64_t>& seed)
      : levels_(code.levels),
        list_(list),
        random_(seed.has_value()),
        key_(mixed(static_cast<uint64_t>(seed.value_or(0)))),
        before_(static_cast<size_t>(code.block()) + 1),
        source_(static_cast<size_t>(code.block())),
        best_(static_cast<size_t>(code.block())),
        level_(static_cast<size_t>(code.levels) + 1) {
    for (const uint32_t i : code.free) before_[i + 1] = 1;
    for (int64_t i = 0; i < code.block(); ++i) before_[i + 1] += before_[i];
    for (int l = 0; l <= levels_; ++l) {
      level_[l].llr.resize(static_cast<size_t>(l < levels_ ? list : 1) << l);
      for (auto& word : level_[l].word) word.resize(static_cast<size_t>(list) << l);
    }
  }

  int16_t* source() { return source_.data(); }

  // The codeword of the source, one symbol a byte. `block`: its number, for the random decisions.
  const uint8_t* encode(int64_t block) {
    block_ = static_cast<uint64_t>(block);
    std::vector<int16_t>& root = level_[levels_].llr;
    least_ = INT64_MAX;
    root = source_;
    search();
    if (random_) return best_.data();
    for (size_t i = 0; i < root.size(); ++i) root[i] = dithered(source_[i], i);
    search();
    return best_.data();
  }

 private:
  // One node of each level is in progress. A path's data is at its map's entry; maps are permuted,
  // data is not moved.
  struct Level {
    std::vector<int16_t> llr;      // list x 2^l
    std::vector<uint8_t> word[2];  // decided codewords of a first and a second child, list x 2^l
    uint8_t llr_of[kMaxList], word_of[2][kMaxList];
  };

  // From the root's LLRs to the nearest codeword, if that is nearer than best_.
  void search() {
    paths_ = 1;
    metric_[0] = 0;
    for (Level& level : level_) {
      std::memset(level.llr_of, 0, sizeof level.llr_of);
      std::memset(level.word_of, 0, sizeof level.word_of);
    }
    visit(levels_, 0, 0);
    keep_nearest();
  }

  static int16_t dithered(int llr, size_t index) {
    const int thousandths = static_cast<int>(mixed(index) % 601) + 700;
    return static_cast<int16_t>(std::max(-kClamp, std::min(kClamp, llr * thousandths / 1000)));
  }

  void identity(uint8_t* map) const {
    for (int p = 0; p < paths_; ++p) map[p] = static_cast<uint8_t>(p);
  }

  const int16_t* llr(int level, int p) const {
    return level_[level].llr.data() + (static_cast<size_t>(level_[level].llr_of[p]) << level);
  }
  const uint8_t* word(int level, int side, int p) const {
    return level_[level].word[side].data() +
           (static_cast<size_t>(level_[level].word_of[side][p]) << level);
  }

  void visit(int level, uint32_t at, int side) {
    Level& here = level_[level];
    const uint32_t rows = uint32_t{1} << level, half = rows / 2;
    const uint32_t free = before_[at + rows] - before_[at];
    if (free == 0) {
      for (int p = 0; p < paths_; ++p) {
        const int16_t* x = llr(level, p);
        for (uint32_t i = 0; i < rows; ++i) metric_[p] += table_.penalty(x[i], false);
        std::memset(here.word[side].data() + (static_cast<size_t>(p) << level), 0, rows);
      }
      return identity(here.word_of[side]);
    }
    if (level == 0) return random_ ? draw(at, side) : fork(side);
    Level& below = level_[level - 1];
    for (int p = 0; p < paths_; ++p) {
      const int16_t* x = llr(level, p);
      int16_t* to = below.llr.data() + (static_cast<size_t>(p) << (level - 1));
      for (uint32_t i = 0; i < half; ++i) to[i] = first(x[i], x[half + i]);
    }
    identity(below.llr_of);
    visit(level - 1, at, 0);
    for (int p = 0; p < paths_; ++p) {
      const int16_t* x = llr(level, p);
      const uint8_t* u = word(level - 1, 0, p);
      int16_t* to = below.llr.data() + (static_cast<size_t>(p) << (level - 1));
      for (uint32_t i = 0; i < half; ++i) {
        const int sum = x[half + i] + (u[i] ? -x[i] : x[i]);
        to[i] = static_cast<int16_t>(std::max(-kClamp, std::min(kClamp, sum)));
      }
    }
    identity(below.llr_of);
    visit(level - 1, at + half, 1);
    for (int p = 0; p < paths_; ++p) {
      const uint8_t *a = word(level - 1, 0, p), *b = word(level - 1, 1, p);
      uint8_t* to = here.word[side].data() + (static_cast<size_t>(p) << level);
      for (uint32_t i = 0; i < half; ++i) to[i] = a[i] ^ b[i];
      std::memcpy(to + half, b, half);
    }
    identity(here.word_of[side]);
  }

  int16_t first(int a, int b) const {
    const int p = a < 0 ? -a : a, q = b < 0 ? -b : b;
    const int m = std::min(p, q) - table_.soft_of(p < q ? q - p : p - q) + table_.soft_of(p + q);
    return static_cast<int16_t>((a < 0) != (b < 0) ? -m : m);
  }

  void draw(uint32_t at, int side) {
    const int x = llr(0, 0)[0], d = x < 0 ? -x : x;
    const uint64_t counter = (block_ << levels_) + at;
    const uint32_t less_likely = d < kReach ? table_.one[d] : 0;
    const bool unlikely = (mixed(key_ ^ mixed(counter)) >> 32) < less_likely;
    level_[0].word[side][0] = static_cast<uint8_t>((x < 0) != unlikely);
    identity(level_[0].word_of[side]);
  }

  void fork(int side) {
    struct Candidate {
      int64_t metric;
      int from;
      uint8_t u;
    } candidate[2 * kMaxList];
    for (int p = 0; p < paths_; ++p) {
      const int x = llr(0, p)[0];
      for (int u = 0; u < 2; ++u) {
        candidate[2 * p + u] = {metric_[p] + table_.penalty(x, u == 1), p, static_cast<uint8_t>(u)};
      }
    }
    const int kept = std::min(list_, 2 * paths_);
    std::partial_sort(candidate, candidate + kept, candidate + 2 * paths_,
                      [](const Candidate& a, const Candidate& b) {
                        if (a.metric != b.metric) return a.metric < b.metric;
                        return a.from != b.from ? a.from < b.from : a.u < b.u;
                      });
    const auto follow = [&](uint8_t* map) {
      uint8_t old[kMaxList];
      std::memcpy(old, map, sizeof old);
      for (int p = 0; p < kept; ++p) map[p] = old[candidate[p].from];
    };
    for (Level& level : level_) {
      follow(level.llr_of);
      follow(level.word_of[0]);
      follow(level.word_of[1]);
    }
    paths_ = kept;
    for (int p = 0; p < kept; ++p) {
      metric_[p] = candidate[p].metric;
      level_[0].word[side][p] = candidate[p].u;
    }
    identity(level_[0].word_of[side]);
  }

  void keep_nearest() {
    const uint32_t rows = uint32_t{1} << levels_;
    const uint8_t* best = nullptr;
    int64_t least_metric = 0;
    for (int p = 0; p < paths_; ++p) {
      const uint8_t* w = word(levels_, 0, p);
      int64_t distance = 0;
      for (uint32_t i = 0; i < rows; ++i) {
        distance += w[i] ? std::max<int>(source_[i], 0) : std::max(-source_[i], 0);
      }
      if (distance > least_ || (distance == least_ && (!best || metric_[p] >= least_metric)))
        continue;
      best = w;
      least_ = distance;
      least_metric = metric_[p];
    }
    if (best != nullptr) std::memcpy(best_.data(), best, rows);
  }

  const Tables& table_ = tables();
  const int levels_, list_;
  const bool random_;
  const uint64_t key_;
  std::vector<uint32_t> before_;
  std::vector<int16_t> source_;  // LLRs
  std::vector<uint8_t> best_;    // the codeword at distance least_
  int64_t least_ = 0;
  std::vector<Level> level_;
  int paths_ = 1;
  int64_t metric_[kMaxList] = {};
  uint64_t block_ = 0;
};

// The LLRs of one block whose symbols stand `stride` apart from `from` on. Real values: rint(value
// * scale), with scale = weight / mean |value| of the block, summed in order in float64. False: not
// finite.
bool read_block(const PolarEncoding& encoding, int64_t from, int64_t stride, int64_t weight,
                int16_t* llr) {
  const int64_t rows = encoding.code.block();
  const int64_t count = std::min(rows, (encoding.groups.numel - from + stride - 1) / stride);
  std::memset(llr, 0, static_cast<size_t>(rows) * sizeof(int16_t));
  if (!encoding.soft) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t bit = from + i * stride;
      const bool one = encoding.packed()[bit / 8] >> (bit % 8) & 1;
      llr[i] = static_cast<int16_t>(one ? -weight : weight);
    }
    return true;
  }
  const auto value = [&](int64_t i) {
    return static_cast<double>(encoding.values()[from + i * stride]);
  };
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::fabs(value(i));
  if (!std::isfinite(sum)) return false;
  const double scale = sum > 0 ? static_cast<double>(weight * count) / sum : 0;
  for (int64_t i = 0; i < count; ++i) {
    const double x = std::max(-32767.0, std::min(32767.0, value(i) * scale));
    llr[i] = static_cast<int16_t>(std::nearbyint(x));
  }
  return true;
}

std::tuple<Tensor, Tensor> polar_search(const Tensor& source, const Tensor& frozen, int64_t free,
                                        int64_t numel, int64_t weight, int64_t list,
                                        std::optional<int64_t> seed) {
  GCEXT_CHECK(weight > 0 && weight <= kClamp, "polar: weight must be in [1, 32767], got ", weight,
              ".");
  GCEXT_CHECK(list >= 1 && list <= kMaxList, "polar: list must be in [1, 32], got ", list, ".");
  GCEXT_CHECK(list == 1 || !seed.has_value(),
              "polar: a list is not randomised, got a seed. Drop it.");
  PolarEncoding encoding(source, frozen, free, numel);
  const PolarCode& code = encoding.code;
  const PolarGroups& groups = encoding.groups;
  const int64_t block = code.block();
  for (int64_t group = 0; group < groups.count && encoding.finite; ++group) {
    const int64_t lanes = groups.lanes_of(group), start = groups.start(group);
    const int64_t parts = std::min(lanes, parts_for(lanes * block * list, 4096));
    std::vector<std::vector<uint64_t>> words(static_cast<size_t>(parts));
    parallel_parts(parts, [&](int64_t part) {
      Coder coder(code, static_cast<int>(list), seed);
      std::vector<uint64_t>& word = words[part];
      word.assign(static_cast<size_t>(block), 0);
      for (int64_t j = lanes * part / parts; j < lanes * (part + 1) / parts; ++j) {
        if (!read_block(encoding, start + j, lanes, weight, coder.source())) {
          encoding.finite = false;
          return;
        }
        const uint8_t* codeword = coder.encode(group * kPolarLanes + j);
        for (int64_t i = 0; i < block; ++i) word[i] |= static_cast<uint64_t>(codeword[i]) << j;
      }
    });
    std::vector<uint64_t> u(static_cast<size_t>(block)), rows(static_cast<size_t>(free) + 1);
    for (const auto& word : words)
      for (int64_t i = 0; i < block; ++i) u[i] |= word[i];
    GCEXT_TABLE(polar_table).transform(u.data(), block);
    for (int64_t i = 0; i < free; ++i) rows[i] = u[code.free[i]];
    encoding.write(group, rows.data());
  }
  return encoding.result();
}

}  // namespace

GCEXT_OPERATOR(CPU, polar_search,
               "(Tensor source, Tensor frozen, int free, int numel, int weight, int list, int? "
               "seed) -> (Tensor message, Tensor bad)")

}  // namespace gcext
