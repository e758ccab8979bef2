// encode_codes on CUDA: the kernels and their launches. csrc/encode_codes.h has the
// contract.
//
// The host learns later that a sum is not finite; then the last kernel makes out a copy of memory.
// The sum is computed anew in every pass; where there are three and out is not the memory, which
// nothing may be written to before, step 1 leaves it there.
//
// Of tables, steps 1 to 4; 16-bit floats depend on no other element, so these are one pass, step 5.
//
//   1. Top: eight threads a cell find its largest key, and the first element of tensor, memory and
//      sum that is not finite; a warp a bucket takes the greatest of its cells: the scale.
//      values: a block a cell adds its magnitudes to one bin an exponent and side, in shared
//      memory; a bucket of one cell has its means then, others add up their bins in the device's
//      memory, and a thread a mean divides.
//   2. Report: the status.
//   3. fit: eight threads a cell encode, and add in the order of add_lanes; a warp a bucket adds
//      its cells in order.
//   4. Emit: a thread encodes an element and writes out; eight lanes' codes end at a whole byte.
//
//   5. Halves: codes; out, where that is not the memory, which nothing may be written to before all
//      sums are known to be finite; the first element of tensor, memory and sum that is not. Then
//      the report of step 2, and in place another pass for out.
//
// Traffic of n elements: tensor and memory are read twice, out and bits written. fit: in place they
// are read three times, else once, and out read twice and written twice. Halves: read once, in
// place twice.
#include "cells.cuh"
#include "dynamic8.cuh"
#include "encode_codes_launch.h"
#include "near_bins.cuh"

namespace gcext {

constexpr int kEncodeThreads = 256;

// On the device, between the kernels of one call.
struct EncodeState {
  FirstNonFinite first;
  uint64_t refused;
};

__global__ void encode_clear_kernel(EncodeState* state) {
  state->first = {kNowhere, kNowhere, kNowhere};
  state->refused = 0;
}

// Step 2, one thread.
__global__ void encode_report_kernel(int64_t n, EncodeState* state, int64_t* info) {
  state->refused = report(state->first, true, info) != kSelectOk;
  if (!state->refused) info[kInfoCount] = n;
}

// Step 1, of cells.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_top_kernel(Source source, Cells cells, bool keep, uint32_t* cell_tops,
                      EncodeState* state) {
  each_cell(cells, [&](const CellLane& own) {
    uint32_t top = 0;
    for (int64_t i = own.first; i < own.end; i += kLanes) {
      const float sum = sum_at(source, i);
      const uint32_t key = key_of(sum);
      top = key > top ? key : top;
      if (key >= kInfKey) note(source, i, &state->first);
      if (keep) source.out[i] = sum;
    }
    top = largest_of_lanes<kLanes>(top);
    if (own.writes) cell_tops[own.cell] = top;
  });
}

// Step 1, of buckets.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_scale_kernel(Cells cells, const uint32_t* cell_tops, float* tops, float* scales) {
  const int lane = threadIdx.x % kWarp;
  each_bucket(cells, [&](int64_t bucket, int64_t first, int64_t last) {
    uint32_t top = 0;
    for (int64_t cell = first + lane; cell < last; cell += kWarp)
      top = cell_tops[cell] > top ? cell_tops[cell] : top;
    top = largest_of_lanes(top);
    if (lane == 0) tops[bucket] = scales[bucket] = float_of(top);
  });
}

// Step 1, of values. sums: of the buckets, zeros; null where a cell is a bucket.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_sides_kernel(Source source, Cells cells, Sides* sums, float* scales,
                        EncodeState* state) {
  __shared__ uint64_t bins[2 * kBins];
  __shared__ uint64_t negative;
  for (int64_t cell = blockIdx.x; cell < cells.count(); cell += gridDim.x) {
    clear_bins<kEncodeThreads>(bins, 2 * kBins);
    if (threadIdx.x == 0) negative = 0;
    __syncthreads();
    const int64_t begin = cells.begin(cell), size = cells.size(cell);
    uint64_t own = 0;
    for (int64_t i = begin + threadIdx.x; i < begin + size; i += kEncodeThreads) {
      const float acc = sum_at(source, i);
      const uint32_t key = key_of(acc);
      const int side = acc < 0 ? 1 : 0;
      own += static_cast<uint64_t>(side);
      if (key >= kInfKey) {
        note(source, i, &state->first);
      } else if (key != 0) {
        atomic_add(&bins[side * kBins + bin_of(key)], mantissa_of(key));
      }
    }
    if (own != 0) atomic_add(&negative, own);
    __syncthreads();
    const int64_t bucket = cells.bucket_of(cell);
    if (sums == nullptr) {
      if (threadIdx.x < 2) {
        const int side = static_cast<int>(threadIdx.x);
        const int64_t below = static_cast<int64_t>(negative);
        scales[2 * bucket + side] =
            side_mean(bins + side * kBins, side == 0 ? size - below : below, side);
      }
    } else {
      add_bins(bins, sums[bucket].bins[0], 2 * kBins);
      if (threadIdx.x == 0) {
        uint64_t* count = reinterpret_cast<uint64_t*>(sums[bucket].count);
        atomic_add(&count[0], static_cast<uint64_t>(size) - negative);
        atomic_add(&count[1], negative);
      }
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kEncodeThreads) encode_zero_kernel(uint64_t* words, int64_t n) {
  for (int64_t i = grid_first(); i < n; i += grid_stride()) words[i] = 0;
}

__global__ void __launch_bounds__(kEncodeThreads)
    encode_means_kernel(Cells cells, const Sides* sums, const EncodeState* state, float* scales) {
  if (state->refused) return;
  for (int64_t i = grid_first(); i < 2 * cells.buckets(); i += grid_stride()) {
    const Sides& sides = sums[i / 2];
    const int side = static_cast<int>(i % 2);
    scales[i] = side_mean(sides.bins[side], sides.count[side], side);
  }
}

// The uniform code of element i.
__device__ inline uint32_t grid_code_at(float acc, float top, const GridRule& rule, int64_t i) {
  if (!(top > 0)) return code_of_zero(CodeTable::kUniform, rule.width);
  const int32_t v = rule.random ? static_cast<int32_t>(draw_one(rule.key, i)) : 0;
  return grid_code(acc, grid_factor(top, rule.width), grid_middle(rule.width), v);
}

// Step 3, of cells.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_fit_kernel(Source source, Cells cells, GridRule rule, const float* tops,
                      const EncodeState* state, FitSums* fits) {
  if (state->refused) return;
  fit_cells(source, cells, tops, fits, [&](float acc, float top, int64_t i) {
    const uint32_t code = grid_code_at(acc, top, rule, i);
    return 2 * static_cast<int32_t>(code) - ((1 << rule.width) - 1);
  });
}

// Step 3, of buckets.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_fitted_kernel(Cells cells, int width, const FitSums* fits, const EncodeState* state,
                         float* scales) {
  if (state->refused) return;
  fit_buckets(cells, fits, [&](int64_t bucket, const FitSums& sums) {
    scales[bucket] = fitted_scale(sums, width);
  });
}

// The dynamic8 code of x: of the midpoints of neighbouring magnitudes so many are below it. Twice
// a midpoint is a sum that float64 holds exactly.
__device__ inline uint32_t dynamic_code(float x, float scale) {
  const float* const size = kDynamic8OnDevice.value + kDynamic8Zero;
  const double twice = 2 * static_cast<double>(dynamic_ratio(x, 1.0 / static_cast<double>(scale)));
  int rank = 0;
  for (int step = 128; step > 0; step /= 2) {
    const int t = rank + step;
    if (t <= 128 && twice > static_cast<double>(size[t - 1]) + static_cast<double>(size[t]))
      rank = t;
  }
  if (!(x < 0)) return static_cast<uint32_t>(kDynamic8Zero + rank);
  return static_cast<uint32_t>(kDynamic8Zero - (rank < kDynamic8Zero ? rank : kDynamic8Zero));
}

// Step 4; given: the source of step 1. Eight lanes make the bytes of their codes.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_emit_kernel(EncodeLaunch a, Source given, const float* tops, const EncodeState* state) {
  if (state->refused) return restore(given, grid_first(), a.n, grid_stride());
  const int width = a.rule.width, lane = threadIdx.x % kWarp, part = lane % 8;
  const int64_t bytes = ceil_div(a.n * width, 8);
  // Whole warps go round together: every lane must come to the shuffles.
  for (int64_t row = grid_first() - lane; row < a.n; row += grid_stride()) {
    const int64_t i = row + lane, at = i / 8 * width + part;
    uint32_t code = 0;
    if (i < a.n) {
      const int64_t bucket = i / a.bucket;
      const float acc = sum_at(a.source, i);
      float sent;
      if (a.table == CodeTable::kValues) {
        code = acc < 0 ? 1 : 0;
        sent = a.scales[2 * bucket + code];
      } else {
        const float scale = a.scales[bucket];
        if (!(scale > 0)) {
          code = code_of_zero(a.table, width);
          sent = 0.0f;
        } else if (a.table == CodeTable::kUniform) {
          code = grid_code_at(acc, tops[bucket], a.rule, i);
          sent = grid_value(grid_step(scale, width), code, width);
        } else {
          code = dynamic_code(acc, scale);
          sent = scale * kDynamic8OnDevice.value[code];
        }
      }
      if (a.source.out != nullptr) a.source.out[i] = acc - sent;
    }
    // The codes have bits of their own, so their sum holds them all.
    const uint64_t packed = sum_of_lanes<8>(static_cast<uint64_t>(code) << (part * width));
    if (part < width && at < bytes) a.bits[at] = static_cast<uint8_t>(packed >> (8 * part));
  }
}

__device__ inline Half half_code(float acc, CodeTable table) {
  return table == CodeTable::kFloat16 ? half_of(acc) : bfloat_of(acc);
}

// Step 5.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_halves_kernel(EncodeLaunch a, EncodeState* state) {
  uint16_t* const codes = reinterpret_cast<uint16_t*>(a.bits);
  for (int64_t i = grid_first(); i < a.n; i += grid_stride()) {
    const float acc = sum_at(a.source, i);
    const Half half = half_code(acc, a.table);
    codes[i] = static_cast<uint16_t>(half.code);
    if (key_of(acc) >= kInfKey) note(a.source, i, &state->first);
    if (keeps_sums(a.source)) a.source.out[i] = acc - half.sent;
  }
}

// Step 5, after the report.
__global__ void __launch_bounds__(kEncodeThreads)
    encode_halves_rest_kernel(Source source, int64_t n, CodeTable table, const EncodeState* state) {
  if (state->refused) return restore(source, grid_first(), n, grid_stride());
  if (!in_place(source)) return;
  for (int64_t i = grid_first(); i < n; i += grid_stride()) {
    const float acc = sum_at(source, i);
    source.out[i] = acc - half_code(acc, table).sent;
  }
}

// The launches.

int64_t encode_scratch_bytes(CodeTable table, int64_t n, int64_t bucket) {
  const Cells cells(n, bucket);
  const int64_t state = static_cast<int64_t>(sizeof(EncodeState)), buckets = cells.buckets();
  if (table == CodeTable::kValues)
    return state + (cells.per_bucket > 1 ? buckets * static_cast<int64_t>(sizeof(Sides)) : 0);
  return state + cells.count() * static_cast<int64_t>(sizeof(FitSums)) +
         buckets * static_cast<int64_t>(sizeof(float));
}

cudaError_t launch_encode_codes(const EncodeLaunch& args, cudaStream_t stream) {
  EncodeState* const state = static_cast<EncodeState*>(args.scratch);
  const Cells cells(args.n, args.bucket);
  const int64_t cell_blocks = blocks_for(cells.count() * kLanes, kEncodeThreads, args.max_blocks);
  const int64_t bucket_blocks =
      blocks_for(cells.buckets() * kWarp, kEncodeThreads, args.max_blocks);
  const int64_t element_blocks = blocks_for(args.n, kEncodeThreads, args.max_blocks);
  GCEXT_LAUNCH(encode_clear_kernel, 1, 1, stream, state);
  if (args.table == CodeTable::kValues) {
    Sides* const sums = cells.per_bucket > 1 ? reinterpret_cast<Sides*>(state + 1) : nullptr;
    const int64_t words = cells.buckets() * static_cast<int64_t>(sizeof(Sides) / 8);
    if (sums != nullptr) {
      GCEXT_LAUNCH(encode_zero_kernel, blocks_for(words, kEncodeThreads, args.max_blocks),
                   kEncodeThreads, stream, reinterpret_cast<uint64_t*>(sums), words);
    }
    GCEXT_LAUNCH(encode_sides_kernel, blocks_for(cells.count(), 1, args.max_blocks), kEncodeThreads,
                 stream, args.source, cells, sums, args.scales, state);
    GCEXT_LAUNCH(encode_report_kernel, 1, 1, stream, args.n, state, args.info);
    if (sums != nullptr) {
      GCEXT_LAUNCH(encode_means_kernel, bucket_blocks, kEncodeThreads, stream, cells, sums, state,
                   args.scales);
    }
    GCEXT_LAUNCH(encode_emit_kernel, element_blocks, kEncodeThreads, stream, args, args.source,
                 nullptr, state);
    return cudaSuccess;
  }
  FitSums* const fits = reinterpret_cast<FitSums*>(state + 1);
  uint32_t* const cell_tops = reinterpret_cast<uint32_t*>(fits);  // until they are written
  float* const tops = reinterpret_cast<float*>(fits + cells.count());
  if (args.table == CodeTable::kFloat16 || args.table == CodeTable::kBfloat16) {
    GCEXT_LAUNCH(encode_halves_kernel, element_blocks, kEncodeThreads, stream, args, state);
    GCEXT_LAUNCH(encode_report_kernel, 1, 1, stream, args.n, state, args.info);
    if (args.source.out == nullptr) return cudaSuccess;
    GCEXT_LAUNCH(encode_halves_rest_kernel, element_blocks, kEncodeThreads, stream, args.source,
                 args.n, args.table, state);
    return cudaSuccess;
  }
  EncodeLaunch later = args;
  if (args.fit) later.source = kept_sums(args.source);
  GCEXT_LAUNCH(encode_top_kernel, cell_blocks, kEncodeThreads, stream, args.source, cells,
               args.fit && keeps_sums(args.source), cell_tops, state);
  GCEXT_LAUNCH(encode_report_kernel, 1, 1, stream, args.n, state, args.info);
  GCEXT_LAUNCH(encode_scale_kernel, bucket_blocks, kEncodeThreads, stream, cells, cell_tops, tops,
               args.scales);
  if (args.fit) {
    GCEXT_LAUNCH(encode_fit_kernel, cell_blocks, kEncodeThreads, stream, later.source, cells,
                 args.rule, tops, state, fits);
    GCEXT_LAUNCH(encode_fitted_kernel, bucket_blocks, kEncodeThreads, stream, cells,
                 args.rule.width, fits, state, args.scales);
  }
  GCEXT_LAUNCH(encode_emit_kernel, element_blocks, kEncodeThreads, stream, later, args.source, tops,
               state);
  return cudaSuccess;
}

}  // namespace gcext
