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
// 2. Report what is not finite, or find the scale; levels: draw them, count those that are not
// zero,
//    and fit the norms to them.
// 3. Pass over the cells again: sum once more, and write out what was not sent; levels: the pairs.
//
// A cell is a fixed range of elements within one bucket, and what is not an integer is added cell
// by cell: no result depends on the number of threads.

std::tuple<Tensor, Tensor> sign(const Tensor& tensor, const std::optional<Tensor>& memory,
                                const std::optional<Tensor>& out, double decay,
                                const std::optional<Tensor>& sent,
                                const std::optional<Tensor>& next) {
  int64_t* next_at = nullptr;
  const Source source = sign_args(tensor, memory, out, decay, sent, next, next_at);
  const int64_t n = tensor.numel();
  Tensor bits = empty((n + 7) / 8, ScalarType::Byte, tensor), info = no_info(tensor);
  if (next_at != nullptr) set_sent(next_at, kInfKey, 0, 0);
  if (n == 0) return {bits, info};
  const KernelFpEnv env;
  const QuantizeTable& table = GCEXT_TABLE(quantize_table);
  const Cells cells(n, n);
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
      table.tally_signs(acc, cell.size, cell.top, packed + cell.begin / 8, tally.bins);
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

// The pairs of a cell; where levels are mostly zero, four of them are passed over at a time.
template <class Index>
int64_t emit(const int16_t* drawn, int64_t n, int64_t begin, Index* at, int16_t* level) {
  int64_t count = 0, i = 0;
  const auto one = [&](int64_t j) {
    if (drawn[j] == 0) return;
    at[count] = static_cast<Index>(begin + j);
    level[count++] = drawn[j];
  };
  for (; i + 4 <= n; i += 4) {
    uint64_t four;
    std::memcpy(&four, drawn + i, sizeof four);
    if (four == 0) continue;
    for (int64_t j = i; j < i + 4; ++j) one(j);
  }
  for (; i < n; ++i) one(i);
  return count;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> levels(const Tensor& tensor,
                                                  const std::optional<Tensor>& memory,
                                                  const std::optional<Tensor>& out, double decay,
                                                  int64_t steps, int64_t bucket, bool largest,
                                                  double clip, bool fit, int64_t seed) {
  const Source source = quantize_args(tensor, memory, out, decay);
  const int64_t n = tensor.numel();
  check_levels(steps, bucket);
  const ScalarType index = n > INT32_MAX ? ScalarType::Long : ScalarType::Int;
  const Cells cells(n, bucket == 0 || bucket > n ? std::max<int64_t>(n, 1) : bucket);
  Tensor norms = empty(cells.buckets(), ScalarType::Float, tensor), info = no_info(tensor);
  const auto answer = [&](int64_t count) {
    return std::tuple(norms, pooled_empty(count, index), pooled_empty(count, ScalarType::Short),
                      info);
  };
  float* const norm = norms.mutable_data_ptr<float>();
  if (n == 0) return answer(0);
  const KernelFpEnv env;
  const QuantizeTable& table = GCEXT_TABLE(quantize_table);
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  const int64_t parts = std::min(parts_for(n, kGrain), cells.count());
  const LevelRule rule{mixed(static_cast<uint64_t>(seed)), static_cast<int32_t>(steps)};
  try {
    struct Sum {
      double squares;
      uint32_t top;
    };
    std::vector<Sum> sums(static_cast<size_t>(cells.count()));
    std::vector<FitSums> fits(static_cast<size_t>(fit ? cells.count() : 0));
    std::vector<int64_t> counts(static_cast<size_t>(parts + 1));
    std::vector<int16_t, Pooled<int16_t>> drawn(static_cast<size_t>(n));
    const bool squared = !largest || clip > 0;
    for_cells(table, source, cells, parts, [&](const Cell& cell, const float* acc) {
      sums[static_cast<size_t>(cell.index)] = {squared ? table.squares(acc, cell.size) : 0,
                                               cell.top};
    });
    uint32_t highest = 0;
    for (int64_t b = 0, cell = 0; b < cells.buckets(); ++b) {
      double squares = 0;
      uint32_t top = 0;
      int64_t size = 0;
      for (; cell < cells.count() && cells.bucket_of(cell) == b; ++cell) {
        squares += sums[static_cast<size_t>(cell)].squares;
        top = std::max(top, sums[static_cast<size_t>(cell)].top);
        size += cells.size(cell);
      }
      highest = std::max(highest, top);
      norm[b] = norm_of({largest, clip}, size, squares, top);
    }
    if (highest >= kInfKey) {
      report(source, n, field);
      return answer(0);
    }
    for_cells(table, source, cells, parts, [&](const Cell& cell, const float* acc) {
      int16_t* const these = drawn.data() + cell.begin;
      counts[static_cast<size_t>(cell.part + 1)] +=
          table.levels(acc, cell.size, norm[cells.bucket_of(cell.index)], rule, cell.begin, these);
      if (fit) fits[static_cast<size_t>(cell.index)] = table.fit(acc, cell.size, these);
    });
    for (int64_t b = 0, cell = 0; fit && b < cells.buckets(); ++b) {
      FitSums sum{};
      for (; cell < cells.count() && cells.bucket_of(cell) == b; ++cell) {
        sum.dot += fits[static_cast<size_t>(cell)].dot;
        sum.squares += fits[static_cast<size_t>(cell)].squares;
      }
      norm[b] = fitted_norm(sum, rule.steps);
    }
    for (int64_t part = 0; part < parts; ++part)
      counts[static_cast<size_t>(part + 1)] += counts[static_cast<size_t>(part)];
    auto result = answer(counts.back());
    auto& [_, at, level, __] = result;
    int16_t* const kept = level.mutable_data_ptr<int16_t>();
    const auto write_out = [&](auto* places) {
      for_cells(table, source, cells, parts, [&](const Cell& cell, float* acc) {
        int64_t& next = counts[static_cast<size_t>(cell.part)];
        const int16_t* const these = drawn.data() + cell.begin;
        next += emit(these, cell.size, cell.begin, places + next, kept + next);
        if (source.out == nullptr) return;
        table.subtract_levels(acc, cell.size, norm[cells.bucket_of(cell.index)], rule.steps, these);
        store(table, source, n, cell, acc);
      });
    };
    if (index == ScalarType::Long) {
      write_out(at.mutable_data_ptr<int64_t>());
    } else {
      write_out(at.mutable_data_ptr<int32_t>());
    }
    field[kInfoCount] = level.numel();
    return result;
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
  Tensor value = empty(n, ScalarType::Float, level);
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
