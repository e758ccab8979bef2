// Argument checks of this folder's kernels that the CPU and CUDA operators share.
#pragma once

#include "../common/arguments.h"
#include "adacomp.h"
#include "bin_means.h"
#include "select_chunks.h"

namespace gcext {

inline Chunks chunk_args(int64_t n, int64_t chunk, int64_t k, int64_t last) {
  GCEXT_CHECK(chunk >= 1 && chunk <= kMostChunk, "select_chunks: chunk must be in [1, ", kMostChunk,
              "], got ", chunk, ".");
  const Chunks chunks{n, chunk, k, last};
  const int64_t rest = n == 0 ? 0 : chunks.size_of(chunks.count() - 1);
  GCEXT_CHECK(k >= 1 && k <= chunk, "select_chunks: k must be in [1, chunk], got ", k, " of ",
              chunk, ".");
  GCEXT_CHECK(n == 0 || (last >= 1 && last <= rest && (rest < chunk || last == k)),
              "select_chunks: last must be in [1, size of the last chunk], and k where that is a "
              "whole one, got ",
              last, " of ", rest, ".");
  return chunks;
}

inline void check_bin(int64_t bin) {
  GCEXT_CHECK(bin >= 1 && bin <= kMostBin, "adacomp: bin must be in [1, ", kMostBin, "], got ", bin,
              ".");
}

inline int64_t bin_bytes(int64_t k, int64_t bits) { return k / 8 * bits + (k % 8 * bits + 7) / 8; }

inline void check_bin_means(const Tensor& index, const Tensor& value, const Tensor& info,
                            const std::optional<Tensor>& out, int64_t bits, double range) {
  const bool wide = index.scalar_type() == ScalarType::Long;
  check_dense(index, wide ? ScalarType::Long : ScalarType::Int, "bin_means: index");
  check_dense(value, ScalarType::Float, "bin_means: value");
  check_dense(info, ScalarType::Long, "bin_means: info");
  if (out.has_value()) check_dense(*out, ScalarType::Float, "bin_means: out");
  GCEXT_CHECK(index.numel() == value.numel() && info.numel() == kInfoSize,
              "bin_means: index must name every value, and info have ", +kInfoSize,
              " numbers, got ", index.numel(), " for ", value.numel(), ", and ", info.numel(), ".");
  GCEXT_CHECK(value.numel() < int64_t{1} << 39,
              "bin_means: value must have less than 2^39 elements, got ", value.numel(), ".");
  GCEXT_CHECK(bits >= 1 && bits <= kMostBinBits, "bin_means: bits must be in [1, ", kMostBinBits,
              "], got ", bits, ".");
  GCEXT_CHECK(range > 0 && std::isfinite(range),
              "bin_means: range must be positive and finite, got ", range, ".");
}

}  // namespace gcext
