// Argument checks of this folder's kernels that the CPU and CUDA operators share.
#pragma once

#include "../common/arguments.h"
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

}  // namespace gcext
