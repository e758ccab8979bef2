// dct on CUDA: the kernels and their launches. csrc/dct.h has the contract.
//
// A block of threads has one block of the matrix at a time, in shared memory, and a contiguous
// range of them in all. As on the CPU the sum is computed twice rather than kept, first to validate
// it and to choose, then to write out.
//
//   1. Basis: the four matrices C_n, of the two lengths of parts that either dimension has, and
//      their transposes.
//   2. Choose: sum, transform, and find the bound that k keys reach, bit by bit from the top, each
//      bit a count over the block; what reaches it goes to scratch in order, and its magnitude to
//      one bin an exponent.
//   3. Report: what is not finite or too large, or the mean; one thread.
//   4. Emit: every block adds up the counts before its own, and copies what it chose.
//   5. Subtract: sum again, transform back what was chosen, and write out.
//
//   6. Values: the entries of each block, found by bisection, transformed back.
//
// The inverse adds the products of zeros, too, which changes no bit: a sum that begins at +0 is
// never -0.
#include "dct_launch.h"
#include "near_bins.cuh"
#include "packet.cuh"
#include "sum.cuh"

namespace gcext {

constexpr int kDctThreads = 256;

__device__ const DctTable kDctTable = make_dct_table();

// C_n as c[u*kMaxDct + x], and its transpose.
struct DctBasis {
  float c[kDctArea], t[kDctArea];
};

// Of the shorter and the longer parts of rows, then of columns.
struct DctBases {
  DctBasis rows[2], cols[2];
};

// On the device, between the kernels of one call.
struct DctState {
  uint64_t bins[kBins];
  FirstNonFinite first;
  uint64_t large;  // chosen coefficients above 2^116
  uint64_t refused;
  uint64_t counts[kDctBlocks];  // chosen by each block of threads
};

// What step 2 has chosen, k entries of capacity for each block of the matrix; those of one block of
// threads follow one another from the first of its range on.
struct DctChosen {
  int64_t* index;
  float* value;
  int64_t* end;  // of each block of the matrix: behind its last entry
  int64_t k;
};

// out[i][j] = sum over l < n of a[i][l] * b[l][j], i < h, j < w; strides kMaxDct. Every thread of
// the block must call it, and a barrier must follow.
__device__ inline void dct_multiply(const float* a, const float* b, int h, int n, int w,
                                    float* out) {
  for (int e = threadIdx.x; e < h * w; e += kDctThreads) {
    const int i = e / w, j = e % w;
    float sum = 0;
    for (int l = 0; l < n; ++l) sum += a[i * kMaxDct + l] * b[l * kMaxDct + j];
    out[i * kMaxDct + j] = sum;
  }
}

// Step 1, and the state.
__global__ void __launch_bounds__(kDctThreads)
    dct_prepare_kernel(DctGrid grid, DctBases* bases, DctState* state) {
  for (int64_t e = grid_first(); e < 4 * kDctArea; e += grid_stride()) {
    const int which = static_cast<int>(e / kDctArea), at = static_cast<int>(e % kDctArea);
    const DctCuts& cuts = which < 2 ? grid.rows : grid.cols;
    const int n = which % 2 == 0 ? static_cast<int>(cuts.size) : cuts.longest();
    const int u = at / kMaxDct, x = at % kMaxDct;
    const float value = u < n && x < n ? dct_entry(kDctTable, n, u, x) : 0.0f;
    DctBasis* const basis = (which < 2 ? bases->rows : bases->cols) + which % 2;
    basis->c[at] = value;
    basis->t[x * kMaxDct + u] = value;
  }
  if (state == nullptr || blockIdx.x != 0) return;
  clear_bins<kDctThreads>(state->bins);
  for (int64_t i = threadIdx.x; i < kDctBlocks; i += kDctThreads) state->counts[i] = 0;
  if (threadIdx.x != 0) return;
  state->first = {kNowhere, kNowhere, kNowhere};
  state->large = state->refused = 0;
}

// The largest bound that k keys reach, and in *above how many are above it; 1 and 0 where fewer are
// not 0.
// counts: 32 zeros in shared memory, one a bit, which it uses up. Every thread must call it.
__device__ inline uint32_t dct_bound(const float* x, int h, int w, int k, uint32_t* counts,
                                     int* above) {
  uint32_t bound = 0;
  int higher = 0;  // keys that reach what was refused last: once all bits are tried, bound + 1
  for (int bit = 30; bit >= 0; --bit) {
    const uint32_t next = bound | 1u << bit;
    uint32_t reach = 0;
    for (int e = threadIdx.x; e < h * w; e += kDctThreads)
      reach += key_of(x[e / w * kMaxDct + e % w]) >= next;
    reach = sum_of_lanes(reach);
    if (threadIdx.x % kWarp == 0 && reach > 0) atomicAdd(&counts[bit], reach);
    __syncthreads();
    const int all = static_cast<int>(counts[bit]);
    if (all >= k) {
      bound = next;
    } else {
      higher = all;
    }
  }
  *above = bound > 0 ? higher : 0;
  return bound > 0 ? bound : 1;
}

// Step 2.
__global__ void __launch_bounds__(kDctThreads)
    dct_choose_kernel(Source source, DctGrid grid, bool ternary, const DctBases* bases,
                      DctChosen chosen, DctState* state) {
  __shared__ float acc[kDctArea];
  __shared__ float half[kDctArea];
  __shared__ uint64_t bins[kBins];
  __shared__ uint32_t counts[32];
  __shared__ uint64_t warp_sums[kDctThreads / kWarp];
  clear_bins<kDctThreads>(bins);
  const Range range = range_of_block(grid.blocks());
  int64_t at = range.begin * chosen.k;
  for (int64_t b = range.begin; b < range.end; ++b) {
    const DctBlock block = grid.block(b);
    const int h = block.h, w = block.w, n = h * w;
    const int k = chosen.k < n ? static_cast<int>(chosen.k) : n;
    __syncthreads();  // acc and counts are free
    if (threadIdx.x < 32) counts[threadIdx.x] = 0;
    for (int e = threadIdx.x; e < n; e += kDctThreads) {
      const int64_t i = block.first + e / w * grid.n_cols + e % w;
      const float x = sum_at(source, i);
      if (key_of(x) >= kInfKey) note(source, i, &state->first);
      acc[e / w * kMaxDct + e % w] = x;
    }
    __syncthreads();
    dct_multiply(bases->rows[block.long_h].c, acc, h, h, w, half);
    __syncthreads();
    dct_multiply(half, bases->cols[block.long_w].t, h, w, w, acc);
    __syncthreads();
    int above = 0;
    const uint32_t bound = dct_bound(acc, h, w, k, counts, &above);
    const uint64_t equals = static_cast<uint64_t>(k - above);  // of those at the bound, the first
    uint64_t before = 0;  // keys above the bound, and times 2^32 those at it, of the tiles passed
    for (int tile = 0; tile < n; tile += kDctThreads) {
      const int e = tile + static_cast<int>(threadIdx.x);
      const float x = e < n ? acc[e / w * kMaxDct + e % w] : 0.0f;
      const uint32_t key = key_of(x);
      const uint64_t mine = key > bound ? 1u : key == bound ? uint64_t{1} << 32 : 0u;
      uint64_t total = 0;
      const uint64_t sum = before + block_exclusive_sum(mine, warp_sums, &total);
      before += total;
      const uint64_t same = sum >> 32, taken = same < equals ? same : equals;
      if (mine == 0 || (key == bound && same >= equals)) continue;  // no barrier is left
      const int64_t to = at + static_cast<int64_t>((sum & 0xffffffffu) + taken);
      chosen.index[to] = block.number + e;
      chosen.value[to] = x;
      if (key > kDctLargestKey) atomic_add(&state->large, 1);
      if (ternary && key < kInfKey) atomic_add(&bins[bin_of(key)], mantissa_of(key));
    }
    const uint64_t same = before >> 32;
    at += static_cast<int64_t>((before & 0xffffffffu) + (same < equals ? same : equals));
    if (threadIdx.x == 0) chosen.end[b] = at;
  }
  __syncthreads();
  if (threadIdx.x == 0)
    state->counts[blockIdx.x] = static_cast<uint64_t>(at - range.begin * chosen.k);
  add_bins(bins, state->bins);
}

// Step 3, one thread.
__global__ void dct_report_kernel(bool ternary, DctState* state, int64_t* info) {
  state->refused = report(state->first, true, info) != kSelectOk;
  if (!state->refused && state->large > 0) {
    state->refused = 1;
    info[kInfoStatus] = kSelectTransform;
  }
  if (state->refused) return;
  uint64_t count = 0;
  for (int64_t i = 0; i < kDctBlocks; ++i) count += state->counts[i];
  info[kInfoCount] = static_cast<int64_t>(count);
  if (ternary && count > 0) info[kInfoMean] = exact_mean_bits(state->bins, count);
}

// What a chosen coefficient becomes; mean: of a ternary packet, else 0.
__device__ inline float dct_sent(float x, float mean) {
  return mean == 0 ? x : x < 0 ? -mean : mean;
}

// Step 4.
__global__ void __launch_bounds__(kDctThreads)
    dct_emit_kernel(DctGrid grid, DctChosen chosen, const DctState* state, const int64_t* info,
                    void* index, bool wide, float* value) {
  __shared__ uint64_t warp_sums[kDctThreads / kWarp];
  if (state->refused) return;
  uint64_t mine = 0, before = 0;
  for (unsigned i = threadIdx.x; i < blockIdx.x; i += kDctThreads) mine += state->counts[i];
  block_exclusive_sum(mine, warp_sums, &before);
  const int64_t from = range_of_block(grid.blocks()).begin * chosen.k;
  const int64_t to = static_cast<int64_t>(before);
  const float mean = float_of(static_cast<uint32_t>(info[kInfoMean]));
  const int64_t count = static_cast<int64_t>(state->counts[blockIdx.x]);
  for (int64_t i = threadIdx.x; i < count; i += kDctThreads) {
    const int64_t number = chosen.index[from + i];
    if (wide) {
      static_cast<int64_t*>(index)[to + i] = number;
    } else {
      static_cast<int32_t*>(index)[to + i] = static_cast<int32_t>(number);
    }
    value[to + i] = dct_sent(chosen.value[from + i], mean);
  }
}

// The block of coefficients `whole` transformed back, in place; `half` is free. Every thread must
// call it, after a barrier; another follows.
__device__ inline void dct_inverse(const DctBases* bases, const DctBlock& block, float* whole,
                                   float* half) {
  dct_multiply(bases->rows[block.long_h].t, whole, block.h, block.h, block.w, half);
  __syncthreads();
  dct_multiply(half, bases->cols[block.long_w].c, block.h, block.w, block.w, whole);
  __syncthreads();
}

// Step 5.
__global__ void __launch_bounds__(kDctThreads)
    dct_subtract_kernel(Source source, int64_t n, DctGrid grid, const DctBases* bases,
                        DctChosen chosen, const DctState* state, const int64_t* info) {
  __shared__ float whole[kDctArea];
  __shared__ float half[kDctArea];
  if (state->refused) return restore(source, grid_first(), n, grid_stride());
  const float mean = float_of(static_cast<uint32_t>(info[kInfoMean]));
  const Range range = range_of_block(grid.blocks());
  for (int64_t b = range.begin; b < range.end; ++b) {
    const DctBlock block = grid.block(b);
    const int w = block.w;
    for (int e = threadIdx.x; e < kDctArea; e += kDctThreads) whole[e] = 0;
    __syncthreads();
    const int64_t first = b == range.begin ? b * chosen.k : chosen.end[b - 1];
    for (int64_t i = first + threadIdx.x; i < chosen.end[b]; i += kDctThreads) {
      const int number = static_cast<int>(chosen.index[i] - block.number);
      whole[number / w * kMaxDct + number % w] = dct_sent(chosen.value[i], mean);
    }
    __syncthreads();
    dct_inverse(bases, block, whole, half);
    for (int e = threadIdx.x; e < block.h * w; e += kDctThreads) {
      const int64_t i = block.first + e / w * grid.n_cols + e % w;
      source.out[i] = sum_at(source, i) - whole[e / w * kMaxDct + e % w];
    }
    __syncthreads();
  }
}

// Step 6.
__global__ void __launch_bounds__(kDctThreads)
    dct_values_kernel(DctValuesLaunch args, const DctBases* bases) {
  __shared__ float whole[kDctArea];
  __shared__ float half[kDctArea];
  const Range range = range_of_block(args.grid.blocks());
  for (int64_t b = range.begin; b < range.end; ++b) {
    const DctBlock block = args.grid.block(b);
    const int w = block.w, n = block.h * w;
    for (int e = threadIdx.x; e < kDctArea; e += kDctThreads) whole[e] = 0;
    __syncthreads();
    const int64_t end = first_entry_from(args.packet, block.number + n);
    for (int64_t i = first_entry_from(args.packet, block.number) + threadIdx.x; i < end;
         i += kDctThreads) {
      const int64_t number = index_at(args.packet, i) - block.number;
      if (number < 0 || number >= n) continue;
      const int at = static_cast<int>(number);
      whole[at / w * kMaxDct + at % w] = args.packet.value[i];
    }
    __syncthreads();
    dct_inverse(bases, block, whole, half);
    for (int e = threadIdx.x; e < n; e += kDctThreads)
      args.out[block.first + e / w * args.grid.n_cols + e % w] = whole[e / w * kMaxDct + e % w];
    __syncthreads();
  }
}

// The launches.

namespace {

constexpr int64_t kPrepareBlocks = 4 * kDctArea / kDctThreads;

}  // namespace

int64_t dct_select_scratch_bytes(const DctGrid& grid, int64_t k) {
  return static_cast<int64_t>(sizeof(DctState) + sizeof(DctBases)) +
         grid.blocks() * (8 + k * static_cast<int64_t>(sizeof(int64_t) + sizeof(float)));
}

cudaError_t launch_dct_select(const DctSelectLaunch& args, cudaStream_t stream) {
  const int64_t all = args.grid.blocks(), blocks = blocks_for(all, 1, args.max_blocks);
  DctState* state = static_cast<DctState*>(args.scratch);
  DctBases* bases = reinterpret_cast<DctBases*>(state + 1);
  DctChosen chosen{};
  chosen.index = reinterpret_cast<int64_t*>(bases + 1);
  chosen.end = chosen.index + all * args.k;
  chosen.value = reinterpret_cast<float*>(chosen.end + all);
  chosen.k = args.k;
  GCEXT_LAUNCH(dct_prepare_kernel, kPrepareBlocks, kDctThreads, stream, args.grid, bases, state);
  GCEXT_LAUNCH(dct_choose_kernel, blocks, kDctThreads, stream, args.source, args.grid, args.ternary,
               bases, chosen, state);
  GCEXT_LAUNCH(dct_report_kernel, 1, 1, stream, args.ternary, state, args.info);
  GCEXT_LAUNCH(dct_emit_kernel, blocks, kDctThreads, stream, args.grid, chosen, state, args.info,
               args.index, args.wide, args.value);
  if (args.source.out == nullptr) return cudaSuccess;
  GCEXT_LAUNCH(dct_subtract_kernel, blocks, kDctThreads, stream, args.source, args.n, args.grid,
               bases, chosen, state, args.info);
  return cudaSuccess;
}

int64_t dct_values_scratch_bytes() { return sizeof(DctBases); }

cudaError_t launch_dct_values(const DctValuesLaunch& args, cudaStream_t stream) {
  DctBases* bases = static_cast<DctBases*>(args.scratch);
  DctState* const none = nullptr;
  const int64_t blocks = blocks_for(args.grid.blocks(), 1, args.max_blocks);
  GCEXT_LAUNCH(dct_prepare_kernel, kPrepareBlocks, kDctThreads, stream, args.grid, bases, none);
  GCEXT_LAUNCH(dct_values_kernel, blocks, kDctThreads, stream, args, bases);
  return cudaSuccess;
}

}  // namespace gcext
