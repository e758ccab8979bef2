#include "select.h"

#include <tuple>

#include "select_args.h"
#include "select_search.h"

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
                const Result& to) {
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
    if (where >= 0) return refuse(to.info, kSelectTensor, where);
    if (!in_place && source.memory != nullptr) where = first_not_finite(table, source.memory, n);
    if (where >= 0) return refuse(to.info, kSelectMemory, where);
    where = source.out != nullptr ? first_not_finite(table, source.out, n) : -1;
    return refuse(to.info, kSelectOverflow, where);
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

using Pairs = std::tuple<Tensor, Tensor, Tensor>;

// Index and value of room for `size`, or nothing where torch's allocator has no memory: across the
// stable ABI its error has no type.
std::optional<std::tuple<Tensor, Tensor>> room(int64_t size, bool wide, const Tensor& like) {
  try {
    return std::tuple(empty(size, wide ? ScalarType::Long : ScalarType::Int, like),
                      empty(size, ScalarType::Float, like));
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void select_or_refuse(const SelectArgs& args, int64_t k, bool ternary, const Result& to) {
  if (args.n == 0) return;
  try {
    select_cpu(args.source, args.n, k, args.in_place, ternary, to);
  } catch (const std::bad_alloc&) {
    refuse(to.info, kSelectNoMemory, -1);
  }
}

Pairs select(const Tensor& tensor, const std::optional<Tensor>& memory,
             const std::optional<Tensor>& out, int64_t k, double a, double b, bool ternary) {
  const SelectArgs args = select_args(tensor, memory, out, k, a, b);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  int64_t* field = info.mutable_data_ptr<int64_t>();
  std::fill(field, field + kInfoSize, 0);
  auto pairs = room(k, args.wide, tensor);
  if (!pairs) {
    refuse(field, kSelectNoMemory, -1);
    return std::tuple_cat(*room(0, args.wide, tensor), std::tuple(info));
  }
  auto& [index, value] = *pairs;
  const Result to{index.mutable_data_ptr(), args.wide, value.mutable_data_ptr<float>(), field};
  if (!args.in_place || accepts(args.source.tensor, args.n, field))
    select_or_refuse(args, k, ternary, to);
  return {index, value, info};
}

Pairs select_many(const std::vector<Tensor>& tensor, const std::vector<Tensor>& memory,
                  const std::vector<Tensor>& out, const std::vector<int64_t>& k, double a, double b,
                  bool ternary) {
  const std::vector<SelectArgs> args = select_args(tensor, memory, out, k, a, b);
  const int64_t m = static_cast<int64_t>(args.size());
  Tensor info =
      torch::stable::empty({m, kInfoSize}, ScalarType::Long, std::nullopt, tensor[0].device());
  int64_t* field = info.mutable_data_ptr<int64_t>();
  std::fill(field, field + m * kInfoSize, 0);
  bool fits = true;
  for (int64_t i = 0; i < m; ++i) {
    const SelectArgs& each = args[i];
    if (each.in_place) fits = accepts(each.source.tensor, each.n, field + i * kInfoSize) && fits;
  }
  auto pairs = fits ? room(total(k), false, tensor[0]) : std::nullopt;
  if (!pairs) {
    if (fits) refuse(field, kSelectNoMemory, -1);
    return std::tuple_cat(*room(0, false, tensor[0]), std::tuple(info));
  }
  auto& [index, value] = *pairs;
  int64_t at = 0;
  for (int64_t i = 0; i < m; ++i) {
    select_or_refuse(args[i], k[i], ternary,
                     {index.mutable_data_ptr<int32_t>() + at, false,
                      value.mutable_data_ptr<float>() + at, field + i * kInfoSize});
    at += k[i];
  }
  return {index, value, info};
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

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) {
  m.def("narrow_float64(Tensor tensor) -> Tensor");
  m.def(
      "select(Tensor tensor, Tensor? memory, Tensor(a!)? out, int k, float a, float b, bool "
      "ternary)"
      " -> (Tensor index, Tensor value, Tensor info)");
  m.def(
      "select_many(Tensor[] tensor, Tensor[] memory, Tensor(a!)[] out, int[] k, float a, float b, "
      "bool ternary)"
      " -> (Tensor index, Tensor value, Tensor info)");
}

STABLE_TORCH_LIBRARY_IMPL(gcext, CPU, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("select_many", TORCH_BOX(&select_many));
  m.impl("narrow_float64", TORCH_BOX(&narrow_float64));
}

}  // namespace gcext
