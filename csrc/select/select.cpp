#include "select.h"

#include <tuple>

#include "../common/arguments.h"
#include "select_search.h"

namespace gcext {
namespace {

// 1. Sample the keys of |acc| and guess a bracket [low, high] around the k-th.
// 2. Stream: each part adds, stores, and collects its candidates, keys >= low, in order of index.
// 3. Refuse what is not finite.
// 4. Find the exact k-th key among the candidates; where there are too few or too many of them, by
//    a radix select over the stored sum, and collect again with that key as the bound.
// 5. Tally candidates above and at the key and their exact sum; ties go to the lowest indices.
// 6. Emit the selected pairs, each part at its own offset, and update the memory in the same pass.
//
// Sampling only guesses. Steps 4 to 6 are exact, so the result depends neither on it nor on the
// number of parts.

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

void refuse(int64_t* info, SelectStatus status, int64_t where) {
  info[kInfoStatus] = status;
  info[kInfoWhere] = where;
}

// Whether tensor may be added in place: nothing may be written where it is not finite.
bool accepts(const float* tensor, int64_t n, int64_t* info) {
  const SelectTable& table = GCEXT_TABLE(select_table);
  const KernelFpEnv env;
  std::vector<Part> parts = cut(n);
  if (all_finite(table, parts, tensor)) return true;
  refuse(info, kSelectTensor, first_not_finite(table, tensor, n));
  return false;
}

// in_place: source.out is also the memory; tensor has been accepted.
void select_cpu(const Source& source, int64_t n, int64_t k, bool in_place, bool ternary,
                const Pairs& to, int64_t* info) {
  const SelectTable& table = GCEXT_TABLE(select_table);
  const KernelFpEnv env;
  std::vector<Part> parts = cut(n);
  const Bracket bracket = k > 0 ? guess(table, source, n, k) : Bracket{INT32_MAX, INT32_MAX};
  const int64_t limit = 4 * k + n / 8 + kUnsampled;
  for (Part& part : parts) {  // all of them before anything is stored
    const double share = static_cast<double>(k) / static_cast<double>(n);
    const double expected = static_cast<double>(part.end - part.begin) * share;
    part.reserve(static_cast<int64_t>(1.25 * expected) + 2 * kBlock);
  }
  for_parts(parts, parts.size() > 1,
            [&](Part& part) { stream_part(table, source, part, bracket.low, limit); });

  int64_t count = 0;
  uint32_t highest = 0;
  bool overflow = false, no_memory = false;
  for (const Part& part : parts) {
    count += part.count;
    highest = std::max(highest, part.highest);
    overflow = overflow || part.overflow;
    no_memory = no_memory || part.no_memory;
  }
  if (highest >= kInfKey) {
    int64_t where = in_place ? -1 : first_not_finite(table, source.tensor, n);
    if (where >= 0) return refuse(info, kSelectTensor, where);
    if (!in_place && source.memory != nullptr) where = first_not_finite(table, source.memory, n);
    if (where >= 0) return refuse(info, kSelectMemory, where);
    where = source.out != nullptr ? first_not_finite(table, source.out, n) : -1;
    return refuse(info, kSelectOverflow, where);
  }

  if (no_memory) throw std::bad_alloc();

  uint32_t key;
  const bool parallel = parts.size() > 1 && count > kSerial;
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
  share_ties(parts, k);
  int64_t chosen = 0;
  uint64_t bins[kBins] = {};
  for (Part& part : parts) {
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
        ties -= key_of(part.bits.data()[split]) == key;
    }
    int64_t at = part.offset;
    const auto emit = [&](int64_t from, int64_t until, uint32_t low) {
      const Candidates c{part.start.data() + from, part.bits.data() + from};
      at = table.emit(c, until - from, low, part.begin, ternary, mean, to, at, source.out);
    };
    emit(0, split, key);
    emit(split, part.count, key + 1);
  });
  info[kInfoCount] = chosen;
  info[kInfoMean] = mean;
}

// Selects from every tensor, pairs one after another; `info` has a row for each.
std::tuple<Tensor, Tensor, Tensor> select_all(const std::vector<SelectArgs>& args, bool ternary,
                                              const Tensor& like, Tensor info) {
  const int64_t m = static_cast<int64_t>(args.size());
  const bool wide = args[0].wide;
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  std::fill(field, field + m * kInfoSize, 0);
  bool accepted = true;
  for (int64_t i = 0; i < m; ++i) {
    const SelectArgs& each = args[i];
    if (each.in_place)
      accepted = accepts(each.source.tensor, each.n, field + i * kInfoSize) && accepted;
  }
  const auto pairs_of = [&](int64_t size) {
    return std::tuple(empty(size, wide ? ScalarType::Long : ScalarType::Int, like),
                      empty(size, ScalarType::Float, like), info);
  };
  std::optional<std::tuple<Tensor, Tensor, Tensor>> pairs;
  try {
    pairs = pairs_of(total_k(args));
  } catch (const std::exception&) {  // of torch's allocator: it has no type across the stable ABI
    refuse(field, kSelectNoMemory, -1);
    return pairs_of(0);
  }
  if (!accepted) return *pairs;
  auto& [index, value, _] = *pairs;
  char* at = static_cast<char*>(index.mutable_data_ptr());
  float* value_at = value.mutable_data_ptr<float>();
  for (int64_t i = 0; i < m; ++i) {
    const SelectArgs& each = args[i];
    if (each.n == 0) continue;
    try {
      select_cpu(each.source, each.n, each.k, each.in_place, ternary, {at, wide, value_at},
                 field + i * kInfoSize);
    } catch (const std::bad_alloc&) {
      refuse(field + i * kInfoSize, kSelectNoMemory, -1);
    }
    at += each.k * (wide ? 8 : 4);
    value_at += each.k;
  }
  return *pairs;
}

std::tuple<Tensor, Tensor, Tensor> select(const Tensor& tensor, const std::optional<Tensor>& memory,
                                          const std::optional<Tensor>& out, int64_t k, double a,
                                          double b, bool ternary) {
  return select_all({select_args(tensor, memory, out, k, a, b)}, ternary, tensor,
                    empty(kInfoSize, ScalarType::Long, tensor));
}

std::tuple<Tensor, Tensor, Tensor> select_many(const std::vector<Tensor>& tensor,
                                               const std::vector<Tensor>& memory,
                                               const std::vector<Tensor>& out,
                                               const std::vector<int64_t>& k, double a, double b,
                                               bool ternary) {
  const std::vector<SelectArgs> args = select_args(tensor, memory, out, k, a, b);
  const int64_t m = static_cast<int64_t>(args.size());
  return select_all(
      args, ternary, tensor[0],
      torch::stable::empty({m, kInfoSize}, ScalarType::Long, std::nullopt, tensor[0].device()));
}

// float64 to float32 to nearest, denormals kept whatever the caller flushes. torch converts the
// other float types without a rounding, so they need none of this.
Tensor narrow_float64(const Tensor& tensor) {
  check_dense(tensor, ScalarType::Double, "narrow_float64: tensor");
  const int64_t n = tensor.numel();
  Tensor narrow = empty(n, ScalarType::Float, tensor);
  const double* from = tensor.const_data_ptr<double>();
  float* to = narrow.mutable_data_ptr<float>();
  const int64_t parts = parts_for(n, kGrain);
  parallel_parts(parts, [&](int64_t part) {
    for (int64_t i = n * part / parts; i < n * (part + 1) / parts; ++i)
      to[i] = static_cast<float>(from[i]);
  });
  return narrow;
}

}  // namespace

GCEXT_OPERATOR(CPU, narrow_float64, "(Tensor tensor) -> Tensor")
GCEXT_OPERATOR(CPU, select,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, int k, float a, float b, bool "
               "ternary) -> (Tensor index, Tensor value, Tensor info)")
GCEXT_OPERATOR(CPU, select_many,
               "(Tensor[] tensor, Tensor[] memory, Tensor(a!)[] out, int[] k, float a, float "
               "b, bool ternary) -> (Tensor index, Tensor value, Tensor info)")

}  // namespace gcext
