// select_chunks: the exact top-k of every chunk, fused with accumulation (Sarfi et al. 2025,
// SparseLoCo; Peng et al. 2024, DeMo).
//
//   acc      = a*tensor + b*memory              float32, three roundings, no contraction
//   chunk c  = elements [c*chunk, (c+1)*chunk)  the last one may be shorter
//   chosen   = of every chunk the k indices (of the last: `last`) of largest |acc|;
//              equal magnitudes: the lower index first; zeros never
//   k'       = |chosen|
//   mu       = (sum of |acc_i| over chosen) / k'        exact sum, one rounding to float32
//   value_i  = +-mu (ternary) or acc_i (fp32)
//   memory'_i = acc_i - value_i on chosen, acc_i elsewhere
//
// What the op writes is select's (csrc/select/select.h): index, value, out, info. index and value
// have a capacity of all k's, and rise through all chunks. In place, nothing is written where
// tensor is not finite; where memory is not, or a sum, out becomes the whole sum.
#pragma once

#include "../common/isa.h"
#include "../common/scalar.h"
#include "../common/source.h"

namespace gcext {

constexpr int64_t kMostChunk = int64_t{1} << 16;  // elements; beyond, select is the tool

struct Chunks {
  int64_t n, size;  // elements in all, and of a chunk
  int64_t k, last;  // chosen of a chunk, and of the last one

  GCEXT_HD int64_t count() const { return n / size + (n % size != 0); }
  GCEXT_HD int64_t begin(int64_t c) const { return c * size; }
  GCEXT_HD int64_t size_of(int64_t c) const { return n - c * size < size ? n - c * size : size; }
  GCEXT_HD int64_t k_of(int64_t c) const { return (c + 1) * size >= n ? last : k; }
  // The first entry of a chunk's in arrays with a capacity of all k's.
  GCEXT_HD int64_t entry(int64_t c) const { return c * k; }
  GCEXT_HD int64_t capacity() const { return n == 0 ? 0 : (count() - 1) * k + last; }
};

// Sums on their way to out: n of them, past the cache if `past`, which takes a `to` on a multiple
// of 64 bytes. Nowhere if to is nullptr.
struct Outgoing {
  const float* acc;
  float* to;
  int64_t n;
  bool past;
};

// The bodies compiled per instruction set.
struct ChunkTable {
  // The sum of n elements from source's pointers on, stored to acc, which may be source.tensor.
  // Those with key >= low: their places, rising, to `start`, which has a capacity of n and
  // kChunkPad. Returns their number. *highest = max(*highest, keys). Meanwhile, as memory is both
  // read and written best, stores what is outgoing.
  int64_t (*collect)(const Source& source, int64_t n, uint32_t low, float* acc, uint32_t* start,
                     uint32_t* highest, Outgoing outgoing);
  void (*store)(Outgoing outgoing);
  // The k-th largest key of n > 0 bit patterns, 1 <= k <= n, of which none is below low > 0; zeros
  // follow up to a multiple of kChunkPad.
  uint32_t (*kth)(const uint32_t* bits, int64_t n, int64_t k, uint32_t low);
  // How many keys are greater than `key`; likewise.
  int64_t (*greater)(const uint32_t* bits, int64_t n, uint32_t key);
};

constexpr int64_t kChunkPad = 16;

GCEXT_DECLARE_TABLE(ChunkTable, select_chunks_table)

}  // namespace gcext
