#include "sketch.h"

#include <cmath>
#include <tuple>

#include "common/arguments.h"
#include "common/pool.h"
#include "common/sketch_args.h"
#include "select/select.h"

namespace gcext {
namespace {

// 1. The largest magnitude decides the unit; what is not finite is reported.
// 2. Each thread adds its own contiguous part of the elements to a table of sums of its own.
// 3. The tables are added and rounded.

constexpr int64_t kGrain = 1 << 14;  // elements, or cells, that are worth a thread

uint32_t largest_key(const float* value, int64_t n) {
  const int64_t parts = parts_for(n, kGrain);
  std::vector<uint32_t> top(static_cast<size_t>(parts));
  parallel_parts(parts, [&](int64_t part) {
    const int64_t begin = n * part / parts, end = n * (part + 1) / parts;
    top[static_cast<size_t>(part)] = GCEXT_TABLE(select_table).highest(value + begin, end - begin);
  });
  return *std::max_element(top.begin(), top.end());
}

// The first of n values that is not finite.
int64_t first_bad(const float* value, int64_t n) {
  int64_t i = 0;
  while (i < n && std::isfinite(value[i])) ++i;
  return i;
}

std::tuple<Tensor, Tensor> sketch(const Tensor& tensor, const std::optional<Tensor>& index,
                                  int64_t rows, int64_t cols, int64_t seed) {
  const SketchShape shape = sketch_shape(rows, cols, seed);
  const SketchElements elements = sketch_elements(tensor, index);
  const int64_t n = tensor.numel(), cells = shape.cells();
  Tensor table = pooled_empty(cells, ScalarType::Float);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  std::fill_n(field, int64_t{kInfoSize}, int64_t{0});
  const float* const value = tensor.const_data_ptr<float>();
  float* const out = table.mutable_data_ptr<float>();
  if (n == 0) {
    std::fill_n(out, cells, 0.0f);
    return {table, info};
  }
  const SketchTable& bodies = GCEXT_TABLE(sketch_table);
  const uint32_t top = largest_key(value, n);
  if (top >= kInfKey) {
    field[kInfoStatus] = kSelectTensor;
    field[kInfoWhere] = first_bad(value, n);
    return {table, info};
  }
  const int unit = sketch_unit(top, n);
  // So that no thread clears and adds up more cells than it has elements.
  const int64_t parts = std::min(parts_for(n, kGrain), std::max<int64_t>(1, n / cells));
  std::vector<int64_t, Pooled<int64_t>> sums;
  try {
    sums.resize(static_cast<size_t>(parts * cells));
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
    return {table, info};
  }
  parallel_parts(parts, [&](int64_t part) {
    int64_t* const own = sums.data() + part * cells;
    std::fill_n(own, cells, int64_t{0});
    const int64_t begin = n * part / parts, end = n * (part + 1) / parts;
    SketchElements its = elements;
    its.first = begin;
    bodies.add(value + begin, end - begin, its, shape, power_of_two(-unit), own);
  });
  const int64_t rounders = parts_for(cells, kGrain);
  std::vector<uint32_t> tops(static_cast<size_t>(rounders));
  parallel_parts(rounders, [&](int64_t part) {
    const int64_t begin = cells * part / rounders, end = cells * (part + 1) / rounders;
    tops[static_cast<size_t>(part)] = bodies.round(sums.data() + begin, parts, cells, end - begin,
                                                   power_of_two(unit), out + begin);
  });
  if (*std::max_element(tops.begin(), tops.end()) >= kInfKey) {
    field[kInfoStatus] = kSketchOverflow;
    field[kInfoWhere] = first_bad(out, cells);
    return {table, info};
  }
  field[kInfoCount] = n;
  return {table, info};
}

Tensor sketch_query(const Tensor& table, const std::optional<Tensor>& index, int64_t numel,
                    int64_t rows, int64_t cols, int64_t seed) {
  const SketchShape shape = sketch_shape(rows, cols, seed);
  const SketchElements elements = sketch_asked(table, index, numel, shape);
  const int64_t n = index.has_value() ? index->numel() : numel;
  const float* const from = table.const_data_ptr<float>();
  constexpr int64_t kTile = 4096;
  return fill_tiles(n, kTile, kGrain / kTile, [&](int64_t first, int64_t last, float* out) {
    SketchElements its = elements;
    its.first = first * kTile;
    const int64_t end = std::min(n, last * kTile);
    GCEXT_TABLE(sketch_table).query(from, shape, its, end - its.first, out + its.first);
  });
}

}  // namespace

GCEXT_OPERATOR(CPU, sketch,
               "(Tensor tensor, Tensor? index, int rows, int cols, int seed) -> (Tensor table, "
               "Tensor info)")
GCEXT_OPERATOR(CPU, sketch_query,
               "(Tensor table, Tensor? index, int numel, int rows, int cols, int seed) -> Tensor")

}  // namespace gcext
