// Checks of dct's arguments that the CPU and CUDA operators share.
#pragma once

#include "common/packet.h"
#include "dct.h"

namespace gcext {

inline int64_t dct_numel(const char* op, int64_t rows, int64_t cols) {
  int64_t numel = 0;
  GCEXT_CHECK(rows >= 0 && cols >= 0 && !__builtin_mul_overflow(rows, cols, &numel), op,
              ": rows and cols must be at least 0 and their product below 2^63, got ", rows,
              " and ", cols, ".");
  return numel;
}

inline DctGrid dct_grid(const char* op, int64_t numel, int64_t rows, int64_t cols, int64_t block) {
  GCEXT_CHECK(dct_numel(op, rows, cols) == numel, op, ": tensor must have rows*cols elements, got ",
              numel, " for ", rows, " and ", cols, ".");
  GCEXT_CHECK(block >= 1 && block <= kMaxDct, op, ": block must be in [1, ", kMaxDct, "], got ",
              block, ".");
  return {rows, cols, block};
}

inline void check_dct_k(int64_t k) {
  GCEXT_CHECK(k >= 1, "dct_select: k must be at least 1, got ", k, ".");
}

// The most coefficients that are chosen of a block.
inline int64_t dct_most(const DctGrid& grid, int64_t k) { return std::min(k, grid.largest()); }

inline PacketView dct_packet(const Tensor& index, const Tensor& value) {
  check_dense(value, ScalarType::Float, "dct_values: value");
  const bool wide = index.scalar_type() == ScalarType::Long;
  check_dense(index, wide ? ScalarType::Long : ScalarType::Int, "dct_values: index");
  GCEXT_CHECK(index.numel() == value.numel(), "dct_values: index and value must have one length, ",
              "got ", index.numel(), " and ", value.numel(), ".");
  return {index.const_data_ptr(), value.const_data_ptr<float>(), value.numel(), wide, false};
}

}  // namespace gcext
