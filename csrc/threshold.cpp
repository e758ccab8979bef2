#include "threshold.h"

#include <tuple>

#include "chosen.h"
#include "common/arguments.h"

namespace gcext {
namespace {

// 1. Pass over the cells: the sum, which goes to out where that is not the memory, and a bit for
//    each element that is sent.
// 2. The pairs, by the bits. Out is touched again where something was sent alone; or, where it is
//    the memory, written in another pass.
struct Threshold {
  HostSource source;
  Cells cells;
  ThresholdRule rule;
  int64_t parts = std::min(parts_for(cells.n, kGrain), cells.count());
  const QuantizeTable& table = GCEXT_TABLE(quantize_table);
  Marked chosen{cells.n, parts};

  // Step 1. False where a sum is not finite.
  bool mark() {
    const ThresholdTable& own = GCEXT_TABLE(threshold_table);
    const bool finite =
        all_finite(table, source, cells, parts, [&](const Cell& cell, const float* acc) {
          chosen.add(cell.part, own.mark(acc, cell.size, rule.limit, chosen.words(cell.begin)));
          if (keeps_sums(source)) store(table, source, cells.n, cell, acc);
        });
    chosen.settle();
    return finite;
  }

  // Step 2.
  template <class Index>
  void emit(Index* index, float* value) {
    parallel_parts(parts, [&](int64_t part) {
      const int64_t at = chosen.before(part);
      PairsTo<Index> to{index + at, value + at};
      for_sums(table, source, cells, part, parts,
               [&](int64_t begin, int64_t n, const auto& sums, float* rest) {
                 to.put(chosen, begin, n, sums, rest, [&](float x) { return rule.sent(x); });
               });
    });
  }
};

std::tuple<Tensor, Tensor, Tensor> threshold(const Tensor& tensor,
                                             const std::optional<Tensor>& memory,
                                             const std::optional<Tensor>& out, double decay,
                                             const Tensor& limit, int64_t scale) {
  const HostSource source = threshold_args(tensor, memory, out, decay, limit, scale);
  const int64_t n = tensor.numel();
  const ScalarType wide = n > INT32_MAX ? ScalarType::Long : ScalarType::Int;
  Tensor info = no_info(tensor);
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  const auto answer = [&](int64_t count) {
    return std::tuple(pooled_empty(count, wide), pooled_empty(count, ScalarType::Float), info);
  };
  if (n == 0) return answer(0);
  const KernelFpEnv env;
  try {
    Threshold call{source, Cells(n, n),
                   threshold_rule(*limit.const_data_ptr<int32_t>(), static_cast<uint32_t>(scale))};
    if (!call.mark()) {
      report(source, n, field);
      return answer(0);
    }
    const int64_t count = call.chosen.count();
    auto result = answer(count);
    auto& [index, value, _] = result;
    if (wide == ScalarType::Long) {
      call.emit(index.mutable_data_ptr<int64_t>(), value.mutable_data_ptr<float>());
    } else {
      call.emit(index.mutable_data_ptr<int32_t>(), value.mutable_data_ptr<float>());
    }
    field[kInfoCount] = count;
    field[kInfoMean] = count == 0 ? 0 : scale;
    return result;
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
    return answer(0);
  }
}

}  // namespace

GCEXT_OPERATOR(CPU, threshold,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, Tensor limit, int "
               "scale) -> (Tensor index, Tensor value, Tensor info)")

}  // namespace gcext
