// sketch on CUDA: the kernels and their launches. csrc/sketch.h has the contract.
//
//   1. Clear: the sums, and what the next steps leave.
//   2. Look: the largest key, and the first element that is not finite.
//   3. Add: a thread an element, its units to one sum a row. Sums are integers, so the order of the
//      atomics does not matter.
//   4. Round: a thread a cell; the first that overflows.
//   5. Report, one thread.
//
//   6. Query: a thread an element, its signed cells sorted by insertion.
//
// Traffic: 8 bytes an element, and for each of its rows an atomic of 8 bytes, in the second-level
// cache where the sums fit it. A query reads a cell a row and writes 4 bytes.
#include "common.cuh"
#include "sketch_launch.h"

namespace gcext {

constexpr int kSketchThreads = 256;

// On the device, between the kernels of one call.
struct SketchState {
  uint64_t top;       // the largest key
  uint64_t bad;       // the first element that is not finite, or kNowhere
  uint64_t overflow;  // the first cell, likewise
};

// Step 1.
__global__ void __launch_bounds__(kSketchThreads)
    sketch_clear_kernel(int64_t cells, uint64_t* sums, SketchState* state) {
  for (int64_t i = grid_first(); i < cells; i += grid_stride()) sums[i] = 0;
  if (grid_first() == 0) *state = {0, kNowhere, kNowhere};
}

// Step 2.
__global__ void __launch_bounds__(kSketchThreads)
    sketch_look_kernel(const float* value, int64_t n, SketchState* state) {
  uint32_t top = 0;
  for (int64_t i = grid_first(); i < n; i += grid_stride()) {
    const uint32_t key = key_of(value[i]);
    top = key > top ? key : top;
    if (key >= kInfKey) atomic_min(&state->bad, static_cast<uint64_t>(i));
  }
  top = largest_of_lanes(top);
  if (threadIdx.x % kWarp == 0)
    atomicMax(reinterpret_cast<unsigned long long*>(&state->top),
              static_cast<unsigned long long>(top));
}

// Step 3.
__global__ void __launch_bounds__(kSketchThreads)
    sketch_add_kernel(SketchLaunch a, const SketchState* state, uint64_t* sums) {
  if (state->bad != kNowhere) return;
  const double per_unit = power_of_two(-sketch_unit(static_cast<uint32_t>(state->top), a.n));
  for (int64_t i = grid_first(); i < a.n; i += grid_stride()) {
    const int64_t units = sketch_units(a.value[i], per_unit);
    if (units == 0) continue;
    const uint64_t element = a.elements[i], magnitude = static_cast<uint64_t>(units);
    for (int64_t row = 0; row < a.shape.rows; ++row) {
      const uint64_t hash = sketch_hash(a.shape.row_key(row), element);
      atomic_add(&sums[row * a.shape.cols + sketch_bucket(hash, a.shape.cols)],
                 sketch_negative(hash) ? 0 - magnitude : magnitude);
    }
  }
}

// Step 4.
__global__ void __launch_bounds__(kSketchThreads)
    sketch_round_kernel(SketchLaunch a, const uint64_t* sums, SketchState* state) {
  if (state->bad != kNowhere) return;
  const double unit = power_of_two(sketch_unit(static_cast<uint32_t>(state->top), a.n));
  for (int64_t i = grid_first(); i < a.shape.cells(); i += grid_stride()) {
    const float cell = sketch_cell(static_cast<int64_t>(sums[i]), unit);
    if (key_of(cell) >= kInfKey) atomic_min(&state->overflow, static_cast<uint64_t>(i));
    a.table[i] = cell;
  }
}

// Step 5, one thread.
__global__ void sketch_report_kernel(int64_t n, const SketchState* state, int64_t* info) {
  const bool bad = state->bad != kNowhere, overflow = state->overflow != kNowhere;
  info[kInfoCount] = bad || overflow ? 0 : n;
  info[kInfoStatus] = bad ? kSelectTensor : overflow ? kSketchOverflow : kSelectOk;
  info[kInfoWhere] = static_cast<int64_t>(bad ? state->bad : overflow ? state->overflow : 0);
  info[kInfoMean] = 0;
}

// Step 6.
__global__ void __launch_bounds__(kSketchThreads) sketch_query_kernel(SketchQuery a) {
  float x[kSketchRows];
  const int rows = static_cast<int>(a.shape.rows);
  for (int64_t i = grid_first(); i < a.n; i += grid_stride()) {
    const uint64_t element = a.elements[i];
    for (int row = 0; row < rows; ++row) {
      const uint64_t hash = sketch_hash(a.shape.row_key(row), element);
      const float cell = a.table[row * a.shape.cols + sketch_bucket(hash, a.shape.cols)];
      const float signed_cell = sketch_negative(hash) ? -cell : cell;
      int at = row;
      for (; at > 0 && signed_cell < x[at - 1]; --at) x[at] = x[at - 1];
      x[at] = signed_cell;
    }
    a.estimate[i] = sketch_middle(x[(rows - 1) / 2], x[rows / 2]);
  }
}

// The launches.

int64_t sketch_scratch_bytes(const SketchShape& shape) {
  return static_cast<int64_t>(sizeof(SketchState)) + 8 * shape.cells();
}

cudaError_t launch_sketch(const SketchLaunch& args, cudaStream_t stream) {
  SketchState* state = static_cast<SketchState*>(args.scratch);
  uint64_t* sums = reinterpret_cast<uint64_t*>(state + 1);
  const int64_t cells = args.shape.cells();
  const int64_t blocks = blocks_for(args.n, kSketchThreads, args.max_blocks);
  const int64_t cell_blocks = blocks_for(cells, kSketchThreads, args.max_blocks);
  GCEXT_LAUNCH(sketch_clear_kernel, cell_blocks, kSketchThreads, stream, cells, sums, state);
  GCEXT_LAUNCH(sketch_look_kernel, blocks, kSketchThreads, stream, args.value, args.n, state);
  GCEXT_LAUNCH(sketch_add_kernel, blocks, kSketchThreads, stream, args, state, sums);
  GCEXT_LAUNCH(sketch_round_kernel, cell_blocks, kSketchThreads, stream, args, sums, state);
  GCEXT_LAUNCH(sketch_report_kernel, 1, 1, stream, args.n, state, args.info);
  return cudaSuccess;
}

cudaError_t launch_sketch_query(const SketchQuery& args, int64_t max_blocks, cudaStream_t stream) {
  if (args.n == 0) return cudaSuccess;
  const int64_t blocks = blocks_for(args.n, kSketchThreads, max_blocks);
  GCEXT_LAUNCH(sketch_query_kernel, blocks, kSketchThreads, stream, args);
  return cudaSuccess;
}

}  // namespace gcext
