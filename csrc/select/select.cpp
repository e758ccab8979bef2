#include "select.h"

#include <tuple>

#include "../common/arguments.h"
#include "select_finish.h"

namespace gcext {
namespace {

// 1. Sample the keys of |acc| and guess a bracket [low, high] around the k-th.
// 2. Stream: each part adds, stores, and collects its candidates, keys >= low, in order of index.
// 3. Refuse what is not finite.
// 4. Find the exact k-th key among the candidates; where there are too few or too many of them, by
//    a radix select over the stored sum, and collect again with that key as the bound.
// 5. Tally candidates above and at the key and their exact sum; ties go to the lowest indices.
// 6. Emit the selected pairs, each piece at its own offset, and update the memory in the same pass.
//
// Sampling only guesses. Steps 4 to 6 are exact, so the result depends neither on it nor on the
// number of parts.
//
// Of many selections, one that is a large share of all is cut into parts, one a thread; each of the
// others is one thread's work from the first step to the last, so its sum is still in the cache
// when it is updated. The threads take both from one queue, the largest first.

constexpr int64_t kScan = int64_t{1} << 18;  // elements that are scanned at a time
constexpr int64_t kShare = 2;  // a thread's share of the elements over that of a selection not cut

// Whether the tensors may be added in place: nothing may be written where one is not finite.
bool accepts(const SelectTable& table, const std::vector<SelectArgs>& args, int64_t* info) {
  struct Stretch {
    size_t tensor;
    const float* first;
    int64_t n;
  };
  std::vector<Stretch> stretches;
  for (size_t i = 0; i < args.size(); ++i) {
    for (int64_t at = 0; args[i].in_place && at < args[i].n; at += kScan)
      stretches.push_back({i, args[i].source.tensor + at, std::min(kScan, args[i].n - at)});
  }
  std::vector<uint32_t> highest(stretches.size());
  const int64_t items = static_cast<int64_t>(stretches.size());
  int64_t n = 0;
  for (const Stretch& each : stretches) n += each.n;
  hand_out(items, parts_for(n, kGrain), [&](int64_t i, int64_t) {
    highest[i] = table.highest(stretches[i].first, stretches[i].n);
  });
  bool accepted = true;
  for (size_t i = 0; i < stretches.size(); ++i) {
    const size_t at = stretches[i].tensor;
    int64_t* const its = info + static_cast<int64_t>(at) * kInfoSize;
    if (highest[i] < kInfKey || its[kInfoStatus] != kSelectOk) continue;
    refuse(its, kSelectTensor, first_not_finite(table, args[at].source.tensor, args[at].n));
    accepted = false;
  }
  return accepted;
}

int64_t candidate_limit(const Selection& selection) {
  return 4 * selection.k + selection.n / 8 + kUnsampled;
}

// Candidates that n elements of a selection may have, unless the sample is unlucky.
int64_t candidate_capacity(const Selection& selection, int64_t n) {
  const double share = static_cast<double>(selection.k) / static_cast<double>(selection.n);
  return static_cast<int64_t>(1.25 * static_cast<double>(n) * share) + 2 * kBlock;
}

// What one thread needs for a selection that is not cut.
struct Worker {
  Sample sample;
  Part part;
  Pieces pieces;
};

// A selection that is cut, with a part a thread.
struct Split {
  const Selection* selection;
  std::vector<Part> own;
  Pieces pieces;
  Bracket bracket;
  Parts parts() { return {own.data(), static_cast<int64_t>(own.size())}; }
};

// What a thread takes from the queue: a selection, or a tile of one that is cut.
struct Work {
  const Selection* selection;
  Split* split;
  Tile tile;
  int64_t n;
};

// Runs what may lack memory for a selection.
template <class Body>
void attempt(const Selection& selection, const Body& body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    refuse(selection.info, kSelectNoMemory, -1);
  }
}

void run(const SelectTable& table, const std::vector<Selection>& selections) {
  const KernelFpEnv env;
  int64_t n = 0, largest = 0, capacity = 0;
  for (const Selection& each : selections) n += each.n;
  const int64_t threads = parts_for(n, kGrain);
  std::vector<Split> splits;
  std::vector<Work> queue;
  splits.reserve(selections.size());  // the queue points into it
  for (const Selection& each : selections) {
    if (each.n == 0) {
      state_what_was_sent(each, {}, kInfKey);
      continue;
    }
    largest = std::max(largest, each.n);
    if (parts_for(each.n, kGrain) == 1 ||
        (selections.size() > 1 && each.n <= n / (threads * kShare))) {
      queue.push_back({&each, nullptr, {}, each.n});
      capacity = std::max(capacity, candidate_capacity(each, each.n));
      continue;
    }
    Split& split = splits.emplace_back();
    split.selection = &each;
    split.own.resize(static_cast<size_t>(threads));
    split.pieces.cut(each, threads);
    const int64_t tiles = static_cast<int64_t>(split.pieces.tiles.size());
    for (const Tile& tile : split.pieces.tiles)
      queue.push_back({&each, &split, tile, (each.n + tiles - 1) / tiles});
    for (Part& part : split.own) part.reserve(candidate_capacity(each, each.n / threads));
  }
  std::stable_sort(queue.begin(), queue.end(),
                   [](const Work& x, const Work& y) { return x.n > y.n; });
  std::vector<Worker> workers(static_cast<size_t>(threads));
  for (Worker& each : workers) {  // all memory before anything is stored
    each.sample.reserve(sample_groups(largest));
    each.part.reserve(capacity);
  }

  const bool bypass = n * int64_t{sizeof(float)} > threads * kBypassBytes;
  hand_out(static_cast<int64_t>(splits.size()), threads, [&](int64_t i, int64_t worker) {
    splits[i].bracket = guess(table, *splits[i].selection, workers[worker].sample);
  });
  const auto take = [&](int64_t i, int64_t worker) {
    const Work& work = queue[i];
    const int64_t limit = candidate_limit(*work.selection);
    if (work.split != nullptr)
      return stream_tile(table, *work.selection, work.split->pieces, work.tile,
                         work.split->own[worker], work.split->bracket, limit, bypass);
    attempt(*work.selection, [&] {
      auto& [sample, part, pieces] = workers[worker];
      part.clear();
      pieces.cut(*work.selection, 1);
      const Bracket bracket = guess(table, *work.selection, sample);
      for (const Tile& tile : pieces.tiles)
        stream_tile(table, *work.selection, pieces, tile, part, bracket, limit, bypass);
      finish(table, *work.selection, pieces, {&part, 1}, bracket);
    });
  };
  const int64_t items = static_cast<int64_t>(queue.size());
  selections.size() == 1 ? hand_out_own(items, threads, take) : hand_out(items, threads, take);
  const auto finish_split = [&](int64_t i, int64_t) {
    Split& split = splits[i];
    attempt(*split.selection,
            [&] { finish(table, *split.selection, split.pieces, split.parts(), split.bracket); });
  };
  const int64_t count = static_cast<int64_t>(splits.size());
  if (count >= threads) {
    hand_out(count, threads, finish_split);
  } else {  // the threads share each
    for (int64_t i = 0; i < count; ++i) finish_split(i, 0);
  }
}

Tensor new_info(int64_t m, const Tensor& like) {
  return empty(m, kInfoSize, ScalarType::Long, like);
}

// Selects from every tensor, pairs one after another; or, where there is a `model_k`, so many from
// all tensors together. `info` has a row for each tensor.
std::tuple<Tensor, Tensor, Tensor> select_all(const std::vector<SelectArgs>& args,
                                              std::optional<int64_t> model_k, bool ternary,
                                              Tensor info) {
  const SelectTable& table = GCEXT_TABLE(select_table);
  const int64_t m = static_cast<int64_t>(args.size());
  const bool wide = args[0].wide;
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  std::fill(field, field + m * kInfoSize, 0);
  const auto pairs_of = [&](int64_t size) {
    return std::tuple(pooled_empty(size, wide ? ScalarType::Long : ScalarType::Int),
                      pooled_empty(size, ScalarType::Float), info);
  };
  const bool accepted = accepts(table, args, field);
  std::optional<std::tuple<Tensor, Tensor, Tensor>> pairs;
  try {
    pairs = pairs_of(model_k.has_value() ? *model_k : total_k(args));
  } catch (const std::exception&) {  // of torch's allocator: it has no type across the stable ABI
    refuse(field, kSelectNoMemory, -1);
    return pairs_of(0);
  }
  if (!accepted) return *pairs;
  auto& [index, value, _] = *pairs;
  Pairs to{index.mutable_data_ptr(), wide, value.mutable_data_ptr<float>()};
  try {
    std::vector<Selection> selections;
    selections.reserve(args.size());
    if (model_k.has_value()) {
      selections.emplace_back(args.data(), m, *model_k, ternary, to, field);
    } else {
      for (int64_t i = 0; i < m; ++i) {
        selections.emplace_back(&args[i], 1, args[i].k, ternary, to, field + i * kInfoSize);
        to.index = static_cast<char*>(to.index) + args[i].k * (wide ? 8 : 4);
        to.value += args[i].k;
      }
    }
    run(table, selections);
  } catch (const std::bad_alloc&) {
    refuse(field, kSelectNoMemory, -1);
  }
  return *pairs;
}

using MaybeTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;

std::tuple<Tensor, Tensor, Tensor> select(const Tensor& tensor, const MaybeTensor& memory,
                                          const MaybeTensor& out, int64_t k, double a, double b,
                                          bool ternary, const MaybeTensor& sent,
                                          const MaybeTensor& next) {
  return select_all({select_args(tensor, memory, out, k, a, b, sent, next)}, std::nullopt, ternary,
                    empty(kInfoSize, ScalarType::Long, tensor));
}

std::tuple<Tensor, Tensor, Tensor> select_many(const Tensors& tensor, const Tensors& memory,
                                               const Tensors& out, const std::vector<int64_t>& k,
                                               double a, double b, bool ternary,
                                               const Tensors& sent, const Tensors& next) {
  const std::vector<SelectArgs> args = select_args(tensor, memory, out, k, a, b, sent, next);
  return select_all(args, std::nullopt, ternary,
                    new_info(static_cast<int64_t>(args.size()), tensor[0]));
}

std::tuple<Tensor, Tensor, Tensor> select_model(const Tensors& tensor, const Tensors& memory,
                                                const Tensors& out, int64_t k, double a, double b,
                                                bool ternary, const Tensors& sent,
                                                const Tensors& next) {
  const std::vector<int64_t> any(tensor.size());
  const std::vector<SelectArgs> args = select_args(tensor, memory, out, any, a, b, sent, next);
  int64_t n = 0;
  for (const SelectArgs& each : args) n += each.n;
  GCEXT_CHECK(k >= 0 && k <= n, "select_model: k must be in [0, numel], got ", k, " of ", n, ".");
  return select_all(args, k, ternary, new_info(static_cast<int64_t>(args.size()), tensor[0]));
}

Tensor select_rest(const Tensor& memory, const Tensor& sent) {
  check_dense(memory, ScalarType::Float, "select_rest: memory");
  check_sent("select_rest", sent);
  const SelectTable& table = GCEXT_TABLE(select_table);
  const float* const from = memory.const_data_ptr<float>();
  const int64_t* const what = sent.const_data_ptr<int64_t>();
  const int64_t n = memory.numel();
  return fill_tiles(n, kBlock, kGrain / kBlock, [&](int64_t first, int64_t last, float* to) {
    table.rest(from, what, first * kBlock, std::min(n, last * kBlock) - first * kBlock, to);
  });
}

}  // namespace

GCEXT_OPERATOR(CPU, select,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, int k, float a, float b, bool "
               "ternary, Tensor? sent=None, Tensor(b!)? next=None) -> (Tensor index, Tensor value, "
               "Tensor info)")
GCEXT_OPERATOR(CPU, select_many,
               "(Tensor[] tensor, Tensor[] memory, Tensor(a!)[] out, int[] k, float a, float b, "
               "bool ternary, Tensor[] sent, Tensor(b!)[] next) -> (Tensor index, Tensor "
               "value, Tensor info)")
GCEXT_OPERATOR(CPU, select_model,
               "(Tensor[] tensor, Tensor[] memory, Tensor(a!)[] out, int k, float a, float b, bool "
               "ternary, Tensor[] sent, Tensor(b!)[] next) -> (Tensor index, Tensor value, "
               "Tensor info)")
GCEXT_OPERATOR(CPU, select_rest, "(Tensor memory, Tensor sent) -> Tensor")

}  // namespace gcext
