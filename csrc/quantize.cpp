#include "quantize.h"

#include <cstring>
#include <tuple>

#include "common/arguments.h"
#include "common/packet.h"
#include "common/pool.h"
#include "quantize_pass.h"

namespace gcext {
namespace {

// 1. Pass over the cells: sum, find what is not finite, and tally what the scale or the norms need.
// 2. Report what is not finite, or find the scale; levels: the norms, then a pass that draws them
//    and fits the norms to them.
// 3. Pass over the cells again: write out what was not sent.
//
// Levels of buckets that are one cell each take a single pass for all of it, beside one that
// validates where out is the memory. The pairs come last, from the levels alone.
//
// A cell is a fixed range of elements within one bucket, and what is not an integer is added cell
// by cell: no result depends on the number of threads.

std::tuple<Tensor, Tensor> sign(const Tensor& tensor, const std::optional<Tensor>& memory,
                                const std::optional<Tensor>& out, double decay,
                                const std::optional<Tensor>& sent,
                                const std::optional<Tensor>& next) {
  int64_t* next_at = nullptr;
  const HostSource source = sign_args(tensor, memory, out, decay, sent, next, next_at);
  const int64_t n = tensor.numel();
  Tensor bits = pooled_empty((n + 7) / 8, ScalarType::Byte), info = no_info(tensor);
  if (next_at != nullptr) set_sent(next_at, kInfKey, 0, 0);
  if (n == 0) return {bits, info};
  const KernelFpEnv env;
  const QuantizeTable& table = GCEXT_TABLE(quantize_table);
  const Cells cells(n, n, kPiece);
  const int64_t parts = std::min(parts_for(n, kGrain), cells.count());
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  uint8_t* const packed = bits.mutable_data_ptr<uint8_t>();

  struct Tally {
    uint32_t top = 0;
    uint64_t bins[kBins] = {};
  };
  std::vector<Tally> tallies(static_cast<size_t>(parts));
  for_cells(table, source, cells, parts, [&](const Cell& cell, const float* acc) {
    Tally& tally = tallies[static_cast<size_t>(cell.part)];
    tally.top = std::max(tally.top, cell.top);
    if (tally.top < kInfKey)
      table.tally_signs(acc, cell.size, cell.top, cell.ahead, packed + cell.begin / 8, tally.bins);
    if (next_at != nullptr) store(table, source, n, cell, acc);
  });
  uint64_t bins[kBins] = {};
  for (const Tally& tally : tallies) {
    if (tally.top >= kInfKey) {
      report(source, n, field);
      return {bits, info};
    }
    for (int bin = 0; bin < kBins; ++bin) bins[bin] += tally.bins[bin];
  }
  const uint32_t mean = exact_mean_bits(bins, static_cast<uint64_t>(n));
  if (mean == 0) std::memset(packed, 0, static_cast<size_t>((n + 7) / 8));
  if (next_at != nullptr) {
    set_sent(next_at, 0, n, mean);
  } else if (source.out != nullptr) {
    for_cells(table, source, cells, parts, [&](const Cell& cell, float* acc) {
      table.subtract_signs(acc, cell.size, float_of(mean));
      store(table, source, n, cell, acc);
    });
  }
  field[kInfoCount] = n;
  field[kInfoMean] = mean;
  return {bits, info};
}

// One call of levels, which are held as `Level`.
template <class Level>
class Levels {
 public:
  Levels(const LevelBodies<Level>& bodies, const HostSource& source, const Cells& cells,
         const LevelRule& rule, const Norm& norm, bool fit, float* norms)
      : bodies_(bodies),
        source_(source),
        cells_(cells),
        rule_(rule),
        norm_(norm),
        fit_(fit),
        norms_(norms),
        parts_(std::min(parts_for(cells.n, kGrain), cells.count())),
        counts_(static_cast<size_t>(parts_ + 1)),
        drawn_(static_cast<size_t>(cells.n)) {}

  // Steps 1 and 2, and the subtraction of step 3. False where a sum is not finite.
  bool run() {
    const bool finite = cells_.per_bucket == 1 ? in_one_pass() : in_passes();
    for (size_t part = 0; part + 1 < counts_.size(); ++part) counts_[part + 1] += counts_[part];
    return finite;
  }

  int64_t count() const { return counts_.back(); }

  // The pairs; to at32, or where that is nullptr to at64.
  void emit(int32_t* at32, int64_t* at64, int16_t* level) const {
    const int64_t n = cells_.n;
    const auto begin_of = [&](int64_t part) {
      return part < parts_ ? cells_.begin(cells_.count() * part / parts_) : n;
    };
    parallel_parts(parts_, [&](int64_t part) {
      const int64_t end = begin_of(part + 1);
      int64_t to = counts_[static_cast<size_t>(part)];
      int32_t at[kCell + kEmitSlack];
      int16_t own[kCell + kEmitSlack];
      for (int64_t i = begin_of(part); i < end; i += kCell) {
        const int64_t count = bodies_.emit(drawn_.data() + i, std::min(kCell, end - i),
                                           at32 == nullptr ? 0 : static_cast<int32_t>(i), at, own);
        if (at32 != nullptr) {
          put(table_, n, at, count, at32 + to);
        } else {
          for (int64_t j = 0; j < count; ++j) at64[to + j] = i + at[j];
        }
        put(table_, n, own, count, level + to);
        to += count;
      }
    });
  }

 private:
  const LevelBodies<Level>& bodies_;
  const HostSource source_;
  const Cells cells_;
  const LevelRule rule_;
  const Norm norm_;
  const bool fit_;
  float* const norms_;
  const int64_t parts_;
  const QuantizeTable& table_ = GCEXT_TABLE(quantize_table);
  std::vector<int64_t> counts_;  // of the part before; then of all before
  std::vector<Level, Pooled<Level>> drawn_;

  bool squared() const { return !norm_.largest || norm_.clip > 0; }

  double squares(const Cell& cell, const float* acc) const {
    return squared() ? table_.squares(acc, cell.size) : 0;
  }

  FitSums draw(const Cell& cell, const float* acc, float norm) {
    FitSums sums;
    counts_[static_cast<size_t>(cell.part + 1)] += bodies_.draw(
        acc, cell.size, norm, rule_, cell.begin, cell.ahead, drawn_.data() + cell.begin, &sums);
    return sums;
  }

  void subtract(const Cell& cell, float* acc, float norm) const {
    bodies_.subtract(acc, cell.size, norm, rule_.steps, drawn_.data() + cell.begin);
    store(table_, source_, cells_.n, cell, acc);
  }

  // Where each cell is a bucket.
  bool in_one_pass() {
    if (!may_write(table_, source_, cells_, parts_)) return false;
    return all_finite(table_, source_, cells_, parts_, [&](const Cell& cell, float* acc) {
      float& norm = norms_[cell.index];
      norm = norm_of(norm_, cell.size, squares(cell, acc), cell.top);
      const FitSums sums = draw(cell, acc, norm);
      if (fit_) norm = fitted_norm(sums, rule_.steps);
      if (source_.out != nullptr) subtract(cell, acc, norm);
    });
  }

  // Otherwise: one for the norms, one to draw, and one to subtract. An output of its own holds the
  // sums from the first to the last.
  bool in_passes() {
    const Cells pieces(cells_.n, cells_.bucket, kPiece);
    const bool keep = keeps_sums(source_);
    if (!find_norms(squared() ? cells_ : pieces, keep)) return false;
    const HostSource held = kept_sums(source_);
    std::vector<FitSums> fits(static_cast<size_t>(cells_.count()));
    for_cells(table_, held, cells_, parts_, [&](const Cell& cell, const float* acc) {
      fits[static_cast<size_t>(cell.index)] = draw(cell, acc, norms_[cells_.bucket_of(cell.index)]);
    });
    if (fit_)
      for_buckets(
          cells_, fits,
          [](FitSums& sum, const FitSums& own) {
            sum = {sum.dot + own.dot, sum.squares + own.squares};
          },
          [&](const FitSums& sum, int64_t) { return fitted_norm(sum, rule_.steps); });
    if (source_.out == nullptr) return true;
    for_cells(table_, held, pieces, parts_, [&](const Cell& cell, float* acc) {
      subtract(cell, acc, norms_[pieces.bucket_of(cell.index)]);
    });
    return true;
  }

  // keep: whether the sums go to out. False where one is not finite.
  bool find_norms(const Cells& cells, bool keep) {
    struct Sum {
      double squares;
      uint32_t top;
    };
    std::vector<Sum> sums(static_cast<size_t>(cells.count()));
    const bool finite =
        all_finite(table_, source_, cells, parts_, [&](const Cell& cell, const float* acc) {
          sums[static_cast<size_t>(cell.index)] = {squares(cell, acc), cell.top};
          if (keep) store(table_, source_, cells.n, cell, acc);
        });
    if (!finite) return false;
    for_buckets(
        cells, sums,
        [](Sum& sum, const Sum& own) {
          sum = {sum.squares + own.squares, std::max(sum.top, own.top)};
        },
        [&](const Sum& sum, int64_t n) { return norm_of(norm_, n, sum.squares, sum.top); });
    return true;
  }

  // The norm of each bucket from its cells' sums, added in order.
  template <class Sum, class Add, class Finish>
  void for_buckets(const Cells& cells, const std::vector<Sum>& sums, const Add& add,
                   const Finish& finish) {
    for (int64_t b = 0, cell = 0; b < cells.buckets(); ++b) {
      Sum sum{};
      for (; cell < cells.count() && cells.bucket_of(cell) == b; ++cell)
        add(sum, sums[static_cast<size_t>(cell)]);
      norms_[b] = finish(sum, std::min(cells.bucket, cells.n - b * cells.bucket));
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> levels(const Tensor& tensor,
                                                  const std::optional<Tensor>& memory,
                                                  const std::optional<Tensor>& out, double decay,
                                                  int64_t steps, int64_t bucket, bool largest,
                                                  double clip, bool fit, int64_t seed) {
  const HostSource source = quantize_args(tensor, memory, out, decay);
  const int64_t n = tensor.numel();
  check_levels(steps, bucket);
  const ScalarType index = n > INT32_MAX ? ScalarType::Long : ScalarType::Int;
  const Cells cells(n, bucket == 0 || bucket > n ? std::max<int64_t>(n, 1) : bucket);
  Tensor norms = empty(cells.buckets(), ScalarType::Float, tensor), info = no_info(tensor);
  const auto answer = [&](int64_t count) {
    return std::tuple(norms, pooled_empty(count, index), pooled_empty(count, ScalarType::Short),
                      info);
  };
  if (n == 0) return answer(0);
  const KernelFpEnv env;
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  const LevelRule rule{mixed(static_cast<uint64_t>(seed)), static_cast<int32_t>(steps)};
  const auto run = [&](const auto& bodies) {
    Levels call(bodies, source, cells, rule, {largest, clip}, fit, norms.mutable_data_ptr<float>());
    if (!call.run()) {
      report(source, n, field);
      return answer(0);
    }
    auto result = answer(call.count());
    auto& [_, at, level, __] = result;
    const bool wide = index == ScalarType::Long;
    call.emit(wide ? nullptr : at.template mutable_data_ptr<int32_t>(),
              wide ? at.template mutable_data_ptr<int64_t>() : nullptr,
              level.template mutable_data_ptr<int16_t>());
    field[kInfoCount] = call.count();
    return result;
  };
  try {
    const QuantizeTable& table = GCEXT_TABLE(quantize_table);
    return steps <= INT8_MAX ? run(table.narrow) : run(table.wide);
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
    return answer(0);
  }
}

Tensor level_values(const Tensor& norms, const Tensor& at, const Tensor& level, int64_t bucket,
                    int64_t steps) {
  check_level_values(norms, at, level, bucket, steps);
  const int64_t n = level.numel(), count = norms.numel();
  const PacketView packet{at.const_data_ptr(), nullptr, n, at.scalar_type() == ScalarType::Long,
                          false};
  const bool all = bucket == 0 ? count > 0 : count > INT64_MAX / bucket;
  check_rising("level_values", {packet}, all ? INT64_MAX : count * bucket);
  ValueCode code;
  code.level = level.const_data_ptr<int16_t>();
  code.norm = norms.const_data_ptr<float>();
  code.bucket = bucket;
  code.steps = static_cast<double>(steps);
  Tensor value = pooled_empty(n, ScalarType::Float);
  float* const data = value.mutable_data_ptr<float>();
  const int64_t parts = parts_for(n, kGrain);
  parallel_parts(parts, [&](int64_t part) {
    const Span span{n * part / parts, n * (part + 1) / parts};
    GCEXT_TABLE(walk_table).levels(packet, code, span, data + span.from);
  });
  return value;
}

}  // namespace

GCEXT_OPERATOR(
    CPU, sign,
    "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, Tensor? sent=None, Tensor(b!)? "
    "next=None) -> (Tensor bits, Tensor info)")
GCEXT_OPERATOR(
    CPU, levels,
    "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, int steps, int bucket, bool "
    "largest, float clip, bool fit, int seed) -> (Tensor norms, Tensor at, Tensor level, Tensor "
    "info)")
GCEXT_OPERATOR(CPU, level_values,
               "(Tensor norms, Tensor at, Tensor level, int bucket, int steps) -> Tensor")

}  // namespace gcext
