#include "threshold.h"

#include <numeric>
#include <tuple>

#include "common/arguments.h"
#include "common/pool.h"
#include "quantize_pass.h"

namespace gcext {
namespace {

// 1. Pass over the cells: the sum, which goes to out where that is not the memory, and a bit for
//    each element that is sent.
// 2. The pairs, by the bits. Out is touched again where something was sent alone; or, where it is
//    the memory, which nothing may be written to before all sums are known to be finite, written
//    here in another pass.
struct Threshold {
  HostSource source;
  Cells cells;
  ThresholdRule rule;
  int64_t parts = std::min(parts_for(cells.n, kGrain), cells.count());
  const QuantizeTable& table = GCEXT_TABLE(quantize_table);
  std::vector<uint64_t, Pooled<uint64_t>> words{
      std::vector<uint64_t, Pooled<uint64_t>>(static_cast<size_t>(cells.n / 64 + 1))};
  std::vector<int64_t> first{std::vector<int64_t>(static_cast<size_t>(parts + 1))};  // of a part

  uint64_t* words_of(int64_t begin) { return words.data() + begin / 64; }

  // Step 1. False where a sum is not finite.
  bool mark() {
    const ThresholdTable& own = GCEXT_TABLE(threshold_table);
    const bool keep = source.out != nullptr && !in_place(source);
    const bool finite =
        all_finite(table, source, cells, parts, [&](const Cell& cell, const float* acc) {
          first[static_cast<size_t>(cell.part + 1)] +=
              own.mark(acc, cell.size, rule.limit, words_of(cell.begin));
          if (keep) store(table, source, cells.n, cell, acc);
        });
    std::partial_sum(first.begin(), first.end(), first.begin());
    return finite;
  }

  // Step 2.
  template <class Index>
  void emit(Index* index, float* value) {
    parallel_parts(parts, [&](int64_t part) {
      const int64_t at = first[static_cast<size_t>(part)];
      Index* to = index + at;
      float* sent = value + at;
      if (in_place(source)) {
        for_part(table, source, cells, part, parts, [&](const Cell& cell, float* acc) {
          pairs(cell.begin, cell.size, acc, acc, to, sent);
          store(table, source, cells.n, cell, acc);
        });
        return;
      }
      const int64_t begin = cells.begin(cells.count() * part / parts);
      const int64_t last = cells.count() * (part + 1) / parts - 1;
      const int64_t n = cells.begin(last) + cells.size(last) - begin;
      if (source.out != nullptr) {
        pairs(begin, n, source.out + begin, source.out + begin, to, sent);
      } else if (source.half.at != nullptr) {
        const Halves from{source.half.at + 2 * begin, source.half.brain};
        pairs(begin, n, from, static_cast<float*>(nullptr), to, sent);
      } else {
        pairs(begin, n, source.tensor + begin, static_cast<float*>(nullptr), to, sent);
      }
    });
  }

  // The pairs of n elements from `begin` on, their sums being those of acc, and what is left of
  // them in `rest`, unless that is null.
  template <class Sums, class Index>
  void pairs(int64_t begin, int64_t n, const Sums& acc, float* rest, Index*& index, float*& value) {
    const uint64_t* const marked = words_of(begin);
    for (int64_t start = 0; start < n; start += 64) {
      for (uint64_t word = marked[start / 64]; word != 0; word &= word - 1) {
        const int64_t i = start + __builtin_ctzll(word);
        const float x = acc[i], sent = rule.sent(x);
        *index++ = static_cast<Index>(begin + i);
        *value++ = sent;
        if (rest != nullptr) rest[i] = x - sent;
      }
    }
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
    const int64_t count = call.first.back();
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
