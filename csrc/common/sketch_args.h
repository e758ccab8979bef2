// Argument checks that the CPU and CUDA operators of sketch share.
#pragma once

#include "../sketch.h"
#include "stable.h"

namespace gcext {

inline SketchShape sketch_shape(int64_t rows, int64_t cols, int64_t seed) {
  GCEXT_CHECK(rows >= 1 && rows <= kSketchRows, "sketch: rows must be in [1, 64], got ", rows, ".");
  GCEXT_CHECK(cols >= 1 && cols <= INT32_MAX, "sketch: cols must be in [1, 2^31), got ", cols, ".");
  return {rows, cols, mixed(static_cast<uint64_t>(seed))};
}

// All elements from 0, or those of an index, of any order.
inline SketchElements sketch_index(const std::optional<Tensor>& index) {
  if (!index.has_value()) return {nullptr, false, 0};
  const bool wide = index->scalar_type() == ScalarType::Long;
  check_dense(*index, wide ? ScalarType::Long : ScalarType::Int, "sketch: index");
  return {index->const_data_ptr(), wide, 0};
}

inline SketchElements sketch_elements(const Tensor& tensor, const std::optional<Tensor>& index) {
  check_dense(tensor, ScalarType::Float, "sketch: tensor");
  const int64_t n = tensor.numel();
  GCEXT_CHECK(n < int64_t{1} << 38, "sketch: tensor must have less than 2^38 elements, got ", n,
              ". Encode in parts.");
  GCEXT_CHECK(!index.has_value() || index->numel() == n,
              "sketch: index must name every element of tensor, ", n, ".");
  return sketch_index(index);
}

inline SketchElements sketch_asked(const Tensor& table, const std::optional<Tensor>& index,
                                   int64_t numel, const SketchShape& shape) {
  check_dense(table, ScalarType::Float, "sketch_query: table");
  GCEXT_CHECK(table.numel() == shape.cells(),
              "sketch_query: table must have rows * cols = ", shape.cells(), " cells, got ",
              table.numel(), ".");
  GCEXT_CHECK(numel >= 0, "sketch_query: numel must not be negative, got ", numel, ".");
  return sketch_index(index);
}

}  // namespace gcext
