#include "wangni.h"

#include <numeric>
#include <tuple>

#include "common/arguments.h"
#include "common/marked.h"
#include "common/pool.h"
#include "quantize_pass.h"
#include "threshold.h"

namespace gcext {
namespace {

// Elements of one kind: the bits, and how many there are before each part.
class Marked {
 public:
  Marked(int64_t n, int64_t parts)
      : words_(static_cast<size_t>(n / 64 + 1)), first_(static_cast<size_t>(parts + 1)) {}

  // Of the elements from `begin` on, a multiple of 64.
  uint64_t* words(int64_t begin) { return words_.data() + begin / 64; }
  const uint64_t* words(int64_t begin) const { return words_.data() + begin / 64; }
  void add(int64_t part, int64_t count) { first_[static_cast<size_t>(part + 1)] += count; }

  // Once all are marked.
  void settle() { std::partial_sum(first_.begin(), first_.end(), first_.begin()); }
  int64_t before(int64_t part) const { return first_[static_cast<size_t>(part)]; }
  int64_t count() const { return first_.back(); }

 private:
  std::vector<uint64_t, Pooled<uint64_t>> words_;
  std::vector<int64_t> first_;
};

// body(begin, n, sums, rest) for a part's elements, a range after another. Where out has the sums
// it is touched again where body does so alone.
template <class Body>
void for_sums(const QuantizeTable& table, const HostSource& source, const Cells& cells,
              int64_t part, int64_t parts, const Body& body) {
  if (in_place(source)) {
    for_part(table, source, cells, part, parts, [&](const Cell& cell, float* acc) {
      body(cell.begin, cell.size, acc, acc);
      store(table, source, cells.n, cell, acc);
    });
    return;
  }
  const int64_t begin = cells.begin(cells.count() * part / parts);
  const int64_t last = cells.count() * (part + 1) / parts - 1;
  const int64_t n = cells.begin(last) + cells.size(last) - begin;
  float* const none = nullptr;
  if (source.out != nullptr) {
    body(begin, n, source.out + begin, source.out + begin);
  } else if (source.half.at != nullptr) {
    body(begin, n, Halves{source.half.at + 2 * begin, source.half.brain}, none);
  } else {
    body(begin, n, source.tensor + begin, none);
  }
}

struct Bins {
  uint64_t bin[kBins] = {};

  void add(uint32_t key) { bin[bin_of(key)] += mantissa_of(key); }
  void add(const Bins& other) {
    for (int i = 0; i < kBins; ++i) bin[i] += other.bin[i];
  }
};

// What a part counts in one pass.
struct Tally {
  Bins bins;
  uint64_t count = 0;
  uint32_t top = 0;
};

// 1. Pass over the cells: the sum, which goes to out where that is not the memory, all magnitudes
//    and the largest.
// 2. A pass an iteration: the magnitudes from the limit on, which are few; less these, those below.
// 3. Pass: a bit for each element that is sure, and each that is drawn; the magnitudes of the
//    latter.
// 4. The pairs, by the bits, as of threshold.
//
// Magnitudes are added up as integers: no result depends on the number of threads.
class Wangni {
 public:
  Wangni(const HostSource& source, int64_t n, const WangniRule& rule)
      : source_(source),
        cells_(n, n),
        rule_(rule),
        parts_(std::min(parts_for(n, kGrain), cells_.count())),
        sure_(n, parts_),
        drawn_(n, parts_) {}

  const Marked& sure() const { return sure_; }
  const Marked& drawn() const { return drawn_; }
  uint32_t scale() const { return scale_; }

  // Steps 1 to 3; the status.
  SelectStatus choose() {
    uint32_t top = 0;
    if (!find_limit(&top)) return kSelectOverflow;
    if (!wangni_fits(top, limit_)) return kSelectScaled;
    draw();
    return kSelectOk;
  }

  // Step 4.
  template <class Index>
  void emit(Index* index, float* value, Index* at, float* sent) {
    const auto own = [](float x) { return x; };
    const auto rounded = [&](float x) { return with_sign_of(scale_, x); };
    parallel_parts(parts_, [&](int64_t part) {
      const int64_t first = sure_.before(part), second = drawn_.before(part);
      PairsTo<Index> exact{index + first, value + first}, other{at + second, sent + second};
      for_sums(table_, source_, cells_, part, parts_,
               [&](int64_t begin, int64_t n, const auto& sums, float* rest) {
                 exact.put(sure_.words(begin), begin, n, sums, rest, own);
                 other.put(drawn_.words(begin), begin, n, sums, rest, rounded);
               });
    });
  }

 private:
  const HostSource source_;
  const Cells cells_;
  const WangniRule rule_;
  const int64_t parts_;
  const QuantizeTable& table_ = GCEXT_TABLE(quantize_table);
  const ThresholdTable& threshold_ = GCEXT_TABLE(threshold_table);
  Marked sure_, drawn_;
  uint32_t limit_ = 0, scale_ = 0;

  // Runs a pass over the held sums, body(cell, acc, tally), and adds up the tallies.
  template <class Body>
  Tally tallied(const Body& body) {
    std::vector<Tally> tallies(static_cast<size_t>(parts_));
    for_cells(table_, kept_sums(source_), cells_, parts_, [&](const Cell& cell, const float* acc) {
      body(cell, acc, tallies[static_cast<size_t>(cell.part)]);
    });
    return added(tallies);
  }

  static Tally added(const std::vector<Tally>& tallies) {
    Tally all;
    for (const Tally& each : tallies) {
      all.bins.add(each.bins);
      all.count += each.count;
      all.top = std::max(all.top, each.top);
    }
    return all;
  }

  // Steps 1 and 2. False where a sum is not finite.
  bool find_limit(uint32_t* top) {
    std::vector<Tally> tallies(static_cast<size_t>(parts_));
    const bool finite =
        all_finite(table_, source_, cells_, parts_, [&](const Cell& cell, const float* acc) {
          Tally& tally = tallies[static_cast<size_t>(cell.part)];
          uint8_t signs[kCell / 8];  // not wanted
          table_.tally_signs(acc, cell.size, cell.top, cell.ahead, signs, tally.bins.bin);
          tally.top = std::max(tally.top, cell.top);
          if (keeps_sums(source_)) store(table_, source_, cells_.n, cell, acc);
        });
    if (!finite) return false;
    const Tally all = added(tallies);
    *top = all.top;
    next_limit(all.bins, 0, true);
    for (int step = 0; step < kWangniSteps; ++step) {
      const Tally above = tallied([&](const Cell& cell, const float* acc, Tally& tally) {
        tally.count += static_cast<uint64_t>(mark_sure(cell, acc));
        for_marked(sure_.words(cell.begin), cell.size,
                   [&](int64_t i) { tally.bins.add(key_of(acc[i])); });
      });
      Bins below = all.bins;
      for (int i = 0; i < kBins; ++i) below.bin[i] -= above.bins.bin[i];
      next_limit(below, above.count, false);
    }
    return true;
  }

  // A bin alone may be below 0: tally_signs does not add an exponent's magnitudes to its own.
  void next_limit(const Bins& bins, uint64_t above, bool first) {
    const uint32_t mean = exact_signed_mean_bits(bins.bin, static_cast<uint64_t>(cells_.n));
    limit_ = wangni_limit(rule_, cells_.n, mean, above, first, limit_);
  }

  int64_t mark_sure(const Cell& cell, const float* acc) {
    return threshold_.mark(acc, cell.size, wangni_sure(limit_), sure_.words(cell.begin));
  }

  // Step 3.
  void draw() {
    const WangniTable& own = GCEXT_TABLE(wangni_table);
    const Tally all = tallied([&](const Cell& cell, const float* acc, Tally& tally) {
      int8_t level[kCell];
      FitSums fit;
      table_.narrow.draw(acc, cell.size, float_of(limit_), {rule_.key, 1}, cell.begin, cell.ahead,
                         level, &fit);
      sure_.add(cell.part, mark_sure(cell, acc));
      const uint64_t* const sure = sure_.words(cell.begin);
      drawn_.add(cell.part, own.mark(level, cell.size, sure, drawn_.words(cell.begin)));
      if (source_.out == nullptr) return;
      for_marked(drawn_.words(cell.begin), cell.size,
                 [&](int64_t i) { tally.bins.add(key_of(acc[i])); });
    });
    sure_.settle();
    drawn_.settle();
    if (drawn_.count() == 0) return;
    scale_ = source_.out == nullptr
                 ? limit_
                 : exact_mean_bits(all.bins.bin, static_cast<uint64_t>(drawn_.count()));
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wangni(
    const Tensor& tensor, const std::optional<Tensor>& memory, const std::optional<Tensor>& out,
    double decay, double budget, int64_t seed) {
  const HostSource source = wangni_args(tensor, memory, out, decay, budget);
  const int64_t n = tensor.numel();
  const ScalarType wide = n > INT32_MAX ? ScalarType::Long : ScalarType::Int;
  Tensor infos[2] = {no_info(tensor), no_info(tensor)};
  int64_t* const field[2] = {infos[0].mutable_data_ptr<int64_t>(),
                             infos[1].mutable_data_ptr<int64_t>()};
  const auto answer = [&](int64_t sure, int64_t drawn) {
    return std::tuple(pooled_empty(sure, wide), pooled_empty(sure, ScalarType::Float),
                      pooled_empty(drawn, wide), pooled_empty(drawn, ScalarType::Float), infos[0],
                      infos[1]);
  };
  const auto refused = [&](SelectStatus status) {
    if (status == kSelectOverflow)
      report(source, n, field[0]);
    else
      field[0][kInfoStatus] = status;
    std::copy_n(field[0], int64_t{kInfoSize}, field[1]);
    return answer(0, 0);
  };
  if (n == 0) return answer(0, 0);
  const KernelFpEnv env;
  try {
    Wangni call(source, n, {budget, mixed(static_cast<uint64_t>(seed))});
    if (const SelectStatus status = call.choose(); status != kSelectOk) return refused(status);
    auto result = answer(call.sure().count(), call.drawn().count());
    auto& [index, value, at, sent, _, __] = result;
    float *const values = value.mutable_data_ptr<float>(), *const others =
                                                               sent.mutable_data_ptr<float>();
    if (wide == ScalarType::Long) {
      call.emit(index.mutable_data_ptr<int64_t>(), values, at.mutable_data_ptr<int64_t>(), others);
    } else {
      call.emit(index.mutable_data_ptr<int32_t>(), values, at.mutable_data_ptr<int32_t>(), others);
    }
    field[0][kInfoCount] = call.sure().count();
    field[1][kInfoCount] = call.drawn().count();
    field[1][kInfoMean] = call.scale();
    return result;
  } catch (const std::bad_alloc&) {
    return refused(kSelectNoMemory);
  }
}

}  // namespace

GCEXT_OPERATOR(CPU, wangni,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, float budget, int "
               "seed) -> (Tensor index, Tensor value, Tensor at, Tensor sent, Tensor "
               "info, Tensor drawn)")

}  // namespace gcext
