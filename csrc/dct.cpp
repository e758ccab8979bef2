#include "dct.h"

#include <cstring>
#include <memory>
#include <tuple>

#include "common/arguments.h"
#include "common/packet.h"
#include "common/pool.h"
#include "dct_arguments.h"
#include "quantize_pass.h"

namespace gcext {
namespace {

// 1. Pass over the blocks: sum, transform, choose; keep what was chosen, and tally it for the mean.
// 2. Report what is not finite or too large; else the mean.
// 3. Pass over the blocks again: sum once more, transform back what was chosen, and subtract it.
//
// Each part has its own range of blocks. All sums but the mean's, which is exact, are within a
// block: no result depends on the number of threads.

constexpr DctTable kTable = make_dct_table();

// C_n and its transpose, as multiply takes them.
struct Basis {
  alignas(64) float c[kDctArea], t[kDctArea];

  explicit Basis(int n) : c{}, t{} {
    for (int u = 0; u < n; ++u)
      for (int x = 0; x < n; ++x)
        c[u * kMaxDct + x] = t[x * kMaxDct + u] = dct_entry(kTable, n, u, x);
  }
};

// Of the two lengths of parts that a dimension has.
struct Bases {
  Basis shorter, longer;

  explicit Bases(const DctCuts& cuts)
      : shorter(static_cast<int>(cuts.size)), longer(cuts.longest()) {}
  const Basis& of(bool is_longer) const { return is_longer ? longer : shorter; }
};

struct Transform {
  DctGrid grid;
  Bases rows, cols;
  const DctKernels& kernels = GCEXT_TABLE(dct_kernels);

  explicit Transform(const DctGrid& blocks) : grid(blocks), rows(grid.rows), cols(grid.cols) {}

  int64_t parts() const {
    return std::min(parts_for(grid.n_cols * grid_rows(), kGrain), grid.blocks());
  }
  int64_t grid_rows() const { return grid.rows.begin(grid.rows.count); }
};

// The buffers of one thread.
struct Work {
  alignas(64) float acc[kDctArea], half[kDctArea], whole[kDctArea];
  uint8_t all[kMaxDct], used_rows[kMaxDct], used_cols[kMaxDct];
  int16_t place[kDctArea];

  Work() {
    for (int i = 0; i < kMaxDct; ++i) all[i] = static_cast<uint8_t>(i);
  }
};

// The coefficients of work->acc to work->whole.
void forward(const Transform& transform, const DctBlock& block, Work* work) {
  const float* rows = transform.rows.of(block.long_h).c;
  const float* cols = transform.cols.of(block.long_w).t;
  const DctKernels& kernels = transform.kernels;
  kernels.multiply(rows, work->acc, block.h, work->all, block.h, block.w, work->half);
  kernels.multiply(work->half, cols, block.h, work->all, block.w, block.w, work->whole);
}

// The block of the entries [at, end) of a packet to work->whole; value(entry) is their value.
template <class Index, class Value>
void inverse(const Transform& transform, const DctBlock& block, const Index* index, int64_t at,
             int64_t end, const Value& value, Work* work) {
  bool row_used[kMaxDct] = {}, col_used[kMaxDct] = {};
  float* const coefficient = work->half;
  for (; at < end; ++at) {
    const int number = static_cast<int>(index[at] - block.number);
    const int u = number / block.w, v = number % block.w;
    if (!row_used[u]) std::memset(coefficient + u * kMaxDct, 0, kMaxDct * sizeof(float));
    row_used[u] = col_used[v] = true;
    coefficient[u * kMaxDct + v] = value(at);
  }
  int n_rows = 0, n_cols = 0;
  for (int i = 0; i < kMaxDct; ++i) {
    if (row_used[i]) work->used_rows[n_rows++] = static_cast<uint8_t>(i);
    if (col_used[i]) work->used_cols[n_cols++] = static_cast<uint8_t>(i);
  }
  const float* rows = transform.rows.of(block.long_h).t;
  const float* cols = transform.cols.of(block.long_w).c;
  const DctKernels& kernels = transform.kernels;
  // The chosen coefficients' rows, then their columns.
  alignas(64) float between[kDctArea];
  kernels.multiply(rows, coefficient, block.h, work->used_rows, n_rows, block.w, between);
  kernels.multiply(between, cols, block.h, work->used_cols, n_cols, block.w, work->whole);
}

// The entry behind those of a block.
template <class Index>
int64_t end_of(const DctBlock& block, const Index* index, int64_t at, int64_t until) {
  const int64_t next = block.number + int64_t{1} * block.h * block.w;
  while (at < until && index[at] < next) ++at;
  return at;
}

// What one part has chosen: its range of `index` and `value`.
struct Chosen {
  int64_t first = 0, count = 0;
  uint32_t top = 0;      // the largest key of its sums
  uint32_t largest = 0;  // of its chosen coefficients
  uint64_t bins[kBins] = {};
};

template <class Index>
struct Choice {
  const Transform& transform;
  const HostSource& source;
  int k;
  bool ternary;
  std::unique_ptr<Index[]> index;
  std::unique_ptr<float[]> value;

  // Step 1, of the blocks [first, last).
  void choose(int64_t first, int64_t last, Chosen* chosen) {
    const auto work = std::make_unique<Work>();
    const DctGrid& grid = transform.grid;
    for (int64_t b = first; b < last; ++b) {
      const DctBlock block = grid.block(b);
      const uint32_t top =
          transform.kernels.gather(source, block.first, grid.n_cols, block.h, block.w, work->acc);
      chosen->top = std::max(chosen->top, top);
      if (chosen->top >= kInfKey) return;
      forward(transform, block, work.get());
      const int found = transform.kernels.select(work->whole, block.h, block.w, k, work->place);
      for (int i = 0; i < found; ++i) {
        const int u = work->place[i] / kMaxDct, v = work->place[i] % kMaxDct;
        const float x = work->whole[work->place[i]];
        const uint32_t key = key_of(x);
        const int64_t at = chosen->first + chosen->count++;
        index[at] = static_cast<Index>(block.number + u * block.w + v);
        value[at] = x;
        chosen->largest = std::max(chosen->largest, key);
        if (ternary && key < kInfKey) chosen->bins[bin_of(key)] += mantissa_of(key);
      }
    }
  }

  // Step 3, of the blocks [first, last).
  void subtract(int64_t first, int64_t last, const Chosen& chosen, float mean) {
    const auto work = std::make_unique<Work>();
    const DctGrid& grid = transform.grid;
    int64_t at = chosen.first;
    const int64_t until = at + chosen.count;
    for (int64_t b = first; b < last; ++b) {
      const DctBlock block = grid.block(b);
      const int64_t end = end_of(block, index.get(), at, until);
      inverse(
          transform, block, index.get(), at, end, [&](int64_t i) { return sent(value[i], mean); },
          work.get());
      at = end;
      transform.kernels.gather(source, block.first, grid.n_cols, block.h, block.w, work->acc);
      for (int i = 0; i < block.h; ++i) {
        float* const out = source.out + block.first + i * grid.n_cols;
        const float* const row = work->acc + i * kMaxDct;
        const float* const back = work->whole + i * kMaxDct;
        for (int j = 0; j < block.w; ++j) out[j] = row[j] - back[j];
      }
    }
  }

  float sent(float x, float mean) const { return !ternary ? x : x < 0 ? -mean : mean; }
};

template <class Index>
std::tuple<Tensor, Tensor, Tensor> select_as(const Tensor& tensor, const HostSource& source,
                                             const DctGrid& grid, int64_t k, bool ternary) {
  constexpr ScalarType kType = sizeof(Index) == 8 ? ScalarType::Long : ScalarType::Int;
  Tensor info = no_info(tensor);
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  const auto nothing = [&] {
    return std::tuple(empty(0, kType, tensor), empty(0, ScalarType::Float, tensor), info);
  };
  if (tensor.numel() == 0) return nothing();
  const KernelFpEnv env;
  try {
    const auto transform = std::make_unique<Transform>(grid);
    const int64_t blocks = grid.blocks(), parts = transform->parts(), each = dct_most(grid, k);
    const auto capacity = static_cast<size_t>(blocks * each);
    Choice<Index> choice{*transform,
                         source,
                         static_cast<int>(each),
                         ternary,
                         std::unique_ptr<Index[]>(new Index[capacity]),
                         std::unique_ptr<float[]>(new float[capacity])};
    std::vector<Chosen> chosen(static_cast<size_t>(parts));
    const auto for_parts = [&](const auto& body) {
      parallel_parts(parts, [&](int64_t part) {
        body(blocks * part / parts, blocks * (part + 1) / parts,
             &chosen[static_cast<size_t>(part)]);
      });
    };
    for_parts([&](int64_t first, int64_t last, Chosen* mine) {
      mine->first = first * each;
      choice.choose(first, last, mine);
    });
    uint32_t top = 0, largest = 0;
    uint64_t bins[kBins] = {};
    int64_t count = 0;
    for (const Chosen& part : chosen) {
      top = std::max(top, part.top);
      largest = std::max(largest, part.largest);
      count += part.count;
      for (int bin = 0; bin < kBins; ++bin) bins[bin] += part.bins[bin];
    }
    if (top >= kInfKey) {
      report(source, tensor.numel(), field);
      return nothing();
    }
    if (largest > kDctLargestKey) {
      field[kInfoStatus] = kSelectTransform;
      return nothing();
    }
    const uint32_t mean =
        ternary && count > 0 ? exact_mean_bits(bins, static_cast<uint64_t>(count)) : 0;
    Tensor index = pooled_empty(count, kType), value = pooled_empty(count, ScalarType::Float);
    auto* to_index = index.mutable_data_ptr<Index>();
    auto* to_value = value.mutable_data_ptr<float>();
    for (const Chosen& part : chosen) {
      std::copy_n(choice.index.get() + part.first, part.count, to_index);
      for (int64_t i = 0; i < part.count; ++i)
        to_value[i] = choice.sent(choice.value[part.first + i], float_of(mean));
      to_index += part.count;
      to_value += part.count;
    }
    if (source.out != nullptr) {
      for_parts([&](int64_t first, int64_t last, const Chosen* mine) {
        choice.subtract(first, last, *mine, float_of(mean));
      });
    }
    field[kInfoCount] = count;
    field[kInfoMean] = mean;
    return std::tuple(index, value, info);
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
    return nothing();
  }
}

std::tuple<Tensor, Tensor, Tensor> dct_select(const Tensor& tensor,
                                              const std::optional<Tensor>& memory,
                                              const std::optional<Tensor>& out, double decay,
                                              int64_t rows, int64_t cols, int64_t block, int64_t k,
                                              bool ternary) {
  const HostSource source = source_args("dct_select", tensor, memory, out, 1, decay);
  const DctGrid grid = dct_grid("dct_select", tensor.numel(), rows, cols, block);
  check_dct_k(k);
  if (tensor.numel() > INT32_MAX) return select_as<int64_t>(tensor, source, grid, k, ternary);
  return select_as<int32_t>(tensor, source, grid, k, ternary);
}

template <class Index>
void values_as(const Transform& transform, const Index* index, const float* value, int64_t k,
               float* out) {
  const DctGrid& grid = transform.grid;
  const int64_t blocks = grid.blocks(), parts = transform.parts();
  parallel_parts(parts, [&](int64_t part) {
    const auto work = std::make_unique<Work>();
    const int64_t first = blocks * part / parts, last = blocks * (part + 1) / parts;
    int64_t at = std::lower_bound(index, index + k, grid.block(first).number) - index;
    for (int64_t b = first; b < last; ++b) {
      const DctBlock block = grid.block(b);
      const int64_t end = end_of(block, index, at, k);
      inverse(transform, block, index, at, end, [&](int64_t i) { return value[i]; }, work.get());
      at = end;
      for (int i = 0; i < block.h; ++i)
        std::memcpy(out + block.first + i * grid.n_cols, work->whole + i * kMaxDct,
                    static_cast<size_t>(block.w) * sizeof(float));
    }
  });
}

Tensor dct_values(const Tensor& index, const Tensor& value, int64_t rows, int64_t cols,
                  int64_t block) {
  const int64_t numel = dct_numel("dct_values", rows, cols);
  const DctGrid grid = dct_grid("dct_values", numel, rows, cols, block);
  const PacketView packet = dct_packet(index, value);
  check_rising("dct_values", {packet}, numel);
  Tensor out = pooled_empty(numel, ScalarType::Float);
  if (numel == 0) return out;
  const KernelFpEnv env;
  const auto transform = std::make_unique<Transform>(grid);
  float* const data = out.mutable_data_ptr<float>();
  packet.with_index(
      [&](auto* places) { values_as(*transform, places, packet.value, packet.k, data); });
  return out;
}

}  // namespace

GCEXT_OPERATOR(CPU, dct_select,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, int rows, int cols, "
               "int block, int k, bool ternary) -> (Tensor index, Tensor value, Tensor info)")
GCEXT_OPERATOR(CPU, dct_values,
               "(Tensor index, Tensor value, int rows, int cols, int block) -> Tensor")

}  // namespace gcext
