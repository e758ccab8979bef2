#include "threshold.h"

#include <tuple>

#include "common/arguments.h"
#include "common/pool.h"
#include "quantize_pass.h"

namespace gcext {
namespace {

// The pairs of a part, in order.
template <class Index>
struct Found {
  std::vector<Index, Pooled<Index>> index;
  std::vector<float, Pooled<float>> value;

  void add(int64_t begin, int64_t count, const int32_t* at, const float* sent) {
    const size_t held = index.size(), more = static_cast<size_t>(count);
    index.resize(held + more);
    value.resize(held + more);
    for (size_t i = 0; i < more; ++i) index[held + i] = static_cast<Index>(begin + at[i]);
    std::copy_n(sent, more, value.begin() + static_cast<std::ptrdiff_t>(held));
  }
};

// One pass over the cells, beside one that validates where out is the memory: the sum, the pairs to
// a buffer of the part, and out. Then the buffers are put together.
template <class Index>
class Threshold {
 public:
  Threshold(const HostSource& source, int64_t n, const ThresholdRule& rule, bool subtracted)
      : source_(source),
        cells_(n, n, kPiece),
        rule_(rule),
        subtracted_(subtracted),
        parts_(std::min(parts_for(n, kGrain), cells_.count())),
        found_(static_cast<size_t>(parts_)) {}

  // False where a sum is not finite.
  bool find() {
    if (!may_write(table_, source_, cells_, parts_)) return false;
    const ThresholdTable& own = GCEXT_TABLE(threshold_table);
    return all_finite(table_, source_, cells_, parts_, [&](const Cell& cell, float* acc) {
      int32_t at[kPiece + kTaken];
      float sent[kPiece + kTaken];
      const int64_t count = own.take(acc, cell.size, rule_, subtracted_, at, sent);
      if (count > 0) found_[static_cast<size_t>(cell.part)].add(cell.begin, count, at, sent);
      if (source_.out != nullptr) store(table_, source_, cells_.n, cell, acc);
    });
  }

  int64_t count() const {
    int64_t all = 0;
    for (const Found<Index>& each : found_) all += static_cast<int64_t>(each.index.size());
    return all;
  }

  void gather(Index* index, float* value) const {
    parallel_parts(parts_, [&](int64_t part) {
      size_t before = 0;
      for (size_t i = 0; i < static_cast<size_t>(part); ++i) before += found_[i].index.size();
      const Found<Index>& own = found_[static_cast<size_t>(part)];
      std::copy(own.index.begin(), own.index.end(), index + before);
      std::copy(own.value.begin(), own.value.end(), value + before);
    });
  }

 private:
  const HostSource source_;
  const Cells cells_;
  const ThresholdRule rule_;
  const bool subtracted_;
  const int64_t parts_;
  const QuantizeTable& table_ = GCEXT_TABLE(quantize_table);
  std::vector<Found<Index>> found_;
};

template <class Index>
std::tuple<Tensor, Tensor, Tensor> run(const HostSource& source, int64_t n,
                                       const ThresholdRule& rule, bool subtracted, Tensor info) {
  constexpr ScalarType kind = sizeof(Index) == 8 ? ScalarType::Long : ScalarType::Int;
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  const auto answer = [&](int64_t count) {
    return std::tuple(pooled_empty(count, kind), pooled_empty(count, ScalarType::Float), info);
  };
  if (n == 0) return answer(0);
  const KernelFpEnv env;
  try {
    Threshold<Index> call(source, n, rule, subtracted);
    if (!call.find()) {
      report(source, n, field);
      return answer(0);
    }
    const int64_t count = call.count();
    auto result = answer(count);
    call.gather(std::get<0>(result).template mutable_data_ptr<Index>(),
                std::get<1>(result).template mutable_data_ptr<float>());
    field[kInfoCount] = count;
    field[kInfoMean] = count == 0 ? 0 : rule.scale;
    return result;
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
    return answer(0);
  }
}

std::tuple<Tensor, Tensor, Tensor> threshold(const Tensor& tensor,
                                             const std::optional<Tensor>& memory,
                                             const std::optional<Tensor>& out, double decay,
                                             const Tensor& limit, int64_t scale,
                                             const std::optional<Tensor>& sent,
                                             const std::optional<Tensor>& next) {
  int64_t* next_at = nullptr;
  const HostSource source =
      threshold_args(tensor, memory, out, decay, limit, scale, sent, next, next_at);
  const ThresholdRule rule =
      threshold_rule(*limit.const_data_ptr<int32_t>(), static_cast<uint32_t>(scale));
  if (next_at != nullptr) set_sent(next_at, rule);
  const int64_t n = tensor.numel();
  const Tensor info = no_info(tensor);
  if (n > INT32_MAX) return run<int64_t>(source, n, rule, next_at == nullptr, info);
  return run<int32_t>(source, n, rule, next_at == nullptr, info);
}

}  // namespace

GCEXT_OPERATOR(
    CPU, threshold,
    "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, Tensor limit, int "
    "scale, Tensor? sent=None, Tensor(b!)? next=None) -> (Tensor index, Tensor value, Tensor info)")

}  // namespace gcext
