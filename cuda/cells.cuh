// Cells and buckets on CUDA, as quantize and encode_codes sum them: eight threads a cell, one for
// each lane of its sums, each in order; then a warp a bucket, which adds its cells in order.
#pragma once

#include "../csrc/quantize.h"
#include "sum.cuh"

namespace gcext {

// What a thread has of a cell: the elements first, first + kLanes, ... below end.
struct CellLane {
  int64_t cell, first, end;
  bool writes;  // one thread a cell
};

// body(CellLane). Whole warps go round together, also the lanes that have no cell, so that the body
// may shuffle.
template <class Body>
__device__ inline void each_cell(const Cells& cells, const Body& body) {
  const int lane = threadIdx.x % kLanes;
  const int64_t all = cells.count();
  for (int64_t warp = grid_first() - threadIdx.x % kWarp; warp < all * kLanes;
       warp += grid_stride()) {
    const int64_t cell = (warp + threadIdx.x % kWarp) / kLanes;
    const bool inside = cell < all;
    const int64_t begin = inside ? cells.begin(cell) : 0;
    body(CellLane{cell, begin + lane, inside ? begin + cells.size(cell) : 0, inside && lane == 0});
  }
}

// body(bucket, first, last): a warp's bucket, of the cells [first, last).
template <class Body>
__device__ inline void each_bucket(const Cells& cells, const Body& body) {
  for (int64_t bucket = grid_first() / kWarp; bucket < cells.buckets();
       bucket += grid_stride() / kWarp) {
    const int64_t first = bucket * cells.per_bucket, past = first + cells.per_bucket;
    body(bucket, first, past < cells.count() ? past : cells.count());
  }
}

// What each bucket's scale is fitted by, a cell at a time; level(sum, top, i) of each element, with
// the bucket's entry of tops.
template <class Level>
__device__ inline void fit_cells(const Source& source, const Cells& cells, const float* tops,
                                 FitSums* fits, const Level& level) {
  each_cell(cells, [&](const CellLane& own) {
    double dot = 0;
    uint64_t squares = 0;
    const float top = own.first < own.end ? tops[cells.bucket_of(own.cell)] : 0.0f;
    for (int64_t i = own.first; i < own.end; i += kLanes) {
      const float acc = sum_at(source, i);
      const int32_t x = level(acc, top, i);
      dot += static_cast<double>(acc) * x;
      squares += static_cast<uint64_t>(x * x);
    }
    dot = sum_of_lanes<kLanes>(dot);
    squares = sum_of_lanes<kLanes>(squares);
    if (own.writes) fits[own.cell] = {dot, static_cast<double>(squares)};
  });
}

// body(bucket, sums) by one thread a bucket, of all its cells.
template <class Body>
__device__ inline void fit_buckets(const Cells& cells, const FitSums* fits, const Body& body) {
  const int lane = threadIdx.x % kWarp;
  each_bucket(cells, [&](int64_t bucket, int64_t first, int64_t last) {
    FitSums sums{0.0, 0.0};
    for (int64_t cell = first; cell < last; cell += kWarp) {
      const FitSums own = cell + lane < last ? fits[cell + lane] : FitSums{0.0, 0.0};
      for (int l = 0; l < kWarp && cell + l < last; ++l) {
        sums.dot += __shfl_sync(kWholeWarp, own.dot, l);
        sums.squares += __shfl_sync(kWholeWarp, own.squares, l);
      }
    }
    if (lane == 0) body(bucket, sums);
  });
}

}  // namespace gcext
