// select_chunks on CUDA: kernels and their launches. csrc/chunks/select_chunks.h has the contract.
//
//   1. Clear the state. In place, find whether tensor is finite: otherwise nothing is written.
//   2. Choose, a block a chunk: the sum to out, and kept in shared memory where the chunk fits; the
//      k-th key by three rounds of a radix select (11, 11 and 9 bits, as in select.cuh); the chosen
//      in order of index to scratch, at the chunk's own entries; their exact sum by exponent.
//   3. Settle, one block: the status; where each chunk's entries go, a prefix sum; count and mean.
//   4. Emit, a block a chunk: pairs at their final places, and out at the chosen ones.
//
// Everything that blocks add up is an integer, so the result does not depend on the order of
// execution.
//
// Traffic, in words an element: 3 (4 in place: tensor twice), and for each chosen 2 written, 2
// read, what is sent, and a sector of out.
#include "near_bins.cuh"
#include "select_chunks_launch.h"

namespace gcext {

constexpr int kChunkThreads = 256;
constexpr int kChunkWarps = kChunkThreads / kWarp;
constexpr int kHeld = 4096;  // elements of a chunk whose sums stay in shared memory
constexpr int kChunkAhead = 4;
constexpr int kChunkDigits = 1 << 11;

// On the device, between the kernels of one call.
struct ChunkState {
  uint64_t bins[kBins];
  FirstNonFinite first;
  uint64_t refused;
};

struct Chosen {
  uint32_t start;  // in its chunk
  uint32_t bits;   // of the sum
};

struct ChunkScratch {
  ChunkState* state;
  uint64_t* before;  // an entry a chunk, and one: how many it chose; settled, those before it
  Chosen* chosen;    // capacity()
};

__global__ void __launch_bounds__(kChunkThreads) chunks_clear_kernel(ChunkState* state) {
  clear_bins<kChunkThreads>(state->bins);
  if (threadIdx.x != 0) return;
  state->first = {kNowhere, kNowhere, kNowhere};
  state->refused = 0;
}

// Step 1, in place.
__global__ void __launch_bounds__(kChunkThreads)
    chunks_check_kernel(const float* tensor, int64_t n, ChunkState* state) {
  uint64_t own = kNowhere;
  for (int64_t i = grid_first(); i < n; i += grid_stride()) {
    if (key_of(tensor[i]) >= kInfKey && static_cast<uint64_t>(i) < own)
      own = static_cast<uint64_t>(i);
  }
  if (own != kNowhere) atomic_min(&state->first.tensor, own);
}

// Shared memory.
struct ChunkMemory {
  float acc[kHeld];
  uint32_t counts[kChunkDigits];
  uint64_t bins[kBins];
  uint64_t warp_sums[kChunkWarps];
  uint32_t key, rank;
};

// The sum of an element of a chunk, once step 2 has stored it.
struct ChunkSums {
  const Source& source;
  const ChunkMemory& shared;
  int64_t begin, size;

  __device__ float at(int64_t i) const {
    if (size <= kHeld) return shared.acc[i];
    return source.out != nullptr ? source.out[begin + i] : source.a * source.tensor[begin + i];
  }
};

// acc to out and to shared memory; counts the digits of the first round.
__device__ inline void add_chunk(const ChunkSums& sums, bool in_place, ChunkState* state,
                                 ChunkMemory& shared) {
  const Source& source = sums.source;
  for (int64_t at = 0; at < sums.size; at += kChunkAhead * kChunkThreads) {
    float tensor[kChunkAhead], memory[kChunkAhead];
#pragma unroll
    for (int j = 0; j < kChunkAhead; ++j) {
      const int64_t i = at + j * kChunkThreads + threadIdx.x;
      tensor[j] = i < sums.size ? source.tensor[sums.begin + i] : 0.0f;
      memory[j] = i < sums.size && source.memory != nullptr ? source.memory[sums.begin + i] : 0.0f;
    }
#pragma unroll
    for (int j = 0; j < kChunkAhead; ++j) {
      const int64_t i = at + j * kChunkThreads + threadIdx.x;
      float acc = source.a * tensor[j];
      if (source.memory != nullptr) acc += source.b * memory[j];
      const uint32_t key = key_of(acc);
      if (i < sums.size) {
        if (source.out != nullptr) source.out[sums.begin + i] = acc;
        if (sums.size <= kHeld) shared.acc[i] = acc;
      }
      if (i < sums.size && key >= kInfKey) {
        const uint64_t where = static_cast<uint64_t>(sums.begin + i);
        atomic_min(&state->first.sum, where);
        if (!in_place && key_of(tensor[j]) >= kInfKey) atomic_min(&state->first.tensor, where);
        if (!in_place && key_of(memory[j]) >= kInfKey) atomic_min(&state->first.memory, where);
      }
      add_to_bin(shared.counts, i < sums.size ? static_cast<int>(key >> 20) : -1);
    }
  }
}

// Appends the digit that the rank falls into, counted from the top, to the key; the rank becomes
// that within the digit. Every thread must call it; counts are free again on return.
__device__ inline void append_chunk_digit(int shift, ChunkMemory& shared) {
  constexpr int kOwn = kChunkDigits / kChunkThreads;
  const int top = kChunkDigits - 1 - static_cast<int>(threadIdx.x) * kOwn;
  const uint64_t rank = shared.rank;
  uint64_t sum = 0, total;
  for (int i = 0; i < kOwn; ++i) sum += shared.counts[top - i];
  uint64_t passed = block_exclusive_sum(sum, shared.warp_sums, &total);  // all have read the rank
  if (rank > passed && rank <= passed + sum) {                           // one thread
    int digit = top;
    for (; rank > passed + shared.counts[digit]; --digit) passed += shared.counts[digit];
    shared.key |= static_cast<uint32_t>(digit) << shift;
    shared.rank = static_cast<uint32_t>(rank - passed);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kChunkDigits; i += kChunkThreads) shared.counts[i] = 0;
  __syncthreads();
}

// Step 2. k is at most the chunk's size, so where there are fewer non-zeros than k the k-th key is
// 0: all of them are greater, and the ties, zeros, are not chosen.
__device__ inline void choose(const SelectChunksLaunch& a, int64_t c, const ChunkScratch& scratch,
                              ChunkMemory& shared) {
  const ChunkSums sums = {a.source, shared, a.chunks.begin(c), a.chunks.size_of(c)};
  if (threadIdx.x == 0) {
    shared.key = 0;
    shared.rank = static_cast<uint32_t>(a.chunks.k_of(c));
  }
  __syncthreads();
  add_chunk(sums, a.in_place, scratch.state, shared);
  __syncthreads();
  append_chunk_digit(20, shared);
  for (int round = 1; round < 3; ++round) {
    const int shift = round == 1 ? 9 : 0, bits = round == 1 ? 11 : 9;
    const uint32_t high = shared.key >> (shift + bits);
    for (int64_t at = 0; at < sums.size; at += kChunkThreads) {
      const int64_t i = at + threadIdx.x;
      const uint32_t key = i < sums.size ? key_of(sums.at(i)) : UINT32_MAX;
      const bool shares = key >> (shift + bits) == high;
      add_to_bin(shared.counts, shares ? static_cast<int>(key >> shift & ((1u << bits) - 1)) : -1);
    }
    __syncthreads();
    append_chunk_digit(shift, shared);
  }

  const uint32_t key = shared.key;
  const uint64_t due = key == 0 ? 0 : shared.rank;
  Chosen* const to = scratch.chosen + a.chunks.entry(c);
  uint64_t greater = 0, equal = 0;  // in the chunk before this turn
  for (int64_t at = 0; at < sums.size; at += kChunkThreads) {
    const int64_t i = at + threadIdx.x;
    const float acc = i < sums.size ? sums.at(i) : 0.0f;
    const uint32_t own = key_of(acc);
    const bool above = own > key, tie = i < sums.size && own == key;
    uint64_t total;
    // Both counts in one sum: a chunk has at most 2^16 elements.
    const uint64_t both = (uint64_t{above} << 32) | uint64_t{tie};
    const uint64_t before = block_exclusive_sum(both, shared.warp_sums, &total);
    const uint64_t ties = equal + (before & UINT32_MAX);
    if (above || (tie && ties < due)) {
      const uint64_t place = greater + (before >> 32) + (ties < due ? ties : due);
      to[place] = {static_cast<uint32_t>(i), bits_of(acc)};
      if (own < kInfKey) atomic_add(&shared.bins[bin_of(own)], mantissa_of(own));
    }
    greater += total >> 32;
    equal += total & UINT32_MAX;
  }
  if (threadIdx.x == 0) scratch.before[c] = greater + (equal < due ? equal : due);
  __syncthreads();
}

__global__ void __launch_bounds__(kChunkThreads)
    chunks_choose_kernel(SelectChunksLaunch a, ChunkScratch scratch) {
  __shared__ ChunkMemory shared;
  if (a.in_place && scratch.state->first.tensor != kNowhere) return;  // of the kernel before
  for (int i = threadIdx.x; i < kChunkDigits; i += kChunkThreads) shared.counts[i] = 0;
  clear_bins<kChunkThreads>(shared.bins);
  for (int64_t c = blockIdx.x; c < a.chunks.count(); c += gridDim.x) choose(a, c, scratch, shared);
  add_bins(shared.bins, scratch.state->bins);
}

// Step 3, one block.
__global__ void __launch_bounds__(kChunkThreads)
    chunks_settle_kernel(SelectChunksLaunch a, ChunkScratch scratch) {
  __shared__ uint64_t warp_sums[kChunkWarps];
  __shared__ uint32_t refused;
  ChunkState* const state = scratch.state;
  if (threadIdx.x == 0) {
    refused = report(state->first, a.source.out != nullptr, a.info) != kSelectOk;
    state->refused = refused;
  }
  __syncthreads();
  if (refused) return;
  uint64_t chosen = 0;
  const int64_t count = a.chunks.count();
  for (int64_t at = 0; at < count; at += kChunkThreads) {
    const int64_t c = at + threadIdx.x;
    uint64_t total;
    const uint64_t own = c < count ? scratch.before[c] : 0;
    const uint64_t before = block_exclusive_sum(own, warp_sums, &total);
    if (c < count) scratch.before[c] = chosen + before;
    chosen += total;
  }
  if (threadIdx.x != 0) return;
  scratch.before[count] = chosen;
  a.info[kInfoCount] = static_cast<int64_t>(chosen);
  a.info[kInfoMean] = chosen == 0 ? 0 : exact_mean_bits(state->bins, chosen);
}

// Step 4.
__global__ void __launch_bounds__(kChunkThreads)
    chunks_emit_kernel(SelectChunksLaunch a, ChunkScratch scratch) {
  if (scratch.state->refused) return restore(a.source, grid_first(), a.chunks.n, grid_stride());
  const uint32_t mean = static_cast<uint32_t>(a.info[kInfoMean]);
  for (int64_t c = blockIdx.x; c < a.chunks.count(); c += gridDim.x) {
    const int64_t first = static_cast<int64_t>(scratch.before[c]), begin = a.chunks.begin(c);
    const int64_t count = static_cast<int64_t>(scratch.before[c + 1]) - first;
    const Chosen* const from = scratch.chosen + a.chunks.entry(c);
    for (int64_t i = threadIdx.x; i < count; i += kChunkThreads) {
      const Chosen own = from[i];
      const int64_t place = begin + own.start;
      const float sent = float_of(a.ternary ? mean | (own.bits & 0x80000000u) : own.bits);
      if (a.wide) {
        static_cast<int64_t*>(a.index)[first + i] = place;
      } else {
        static_cast<int32_t*>(a.index)[first + i] = static_cast<int32_t>(place);
      }
      a.value[first + i] = sent;
      if (a.source.out != nullptr) a.source.out[place] = float_of(own.bits) - sent;
    }
  }
}

// The launches.

namespace {

int64_t before_bytes(const Chunks& chunks) { return (chunks.count() + 1) * 8; }

}  // namespace

int64_t select_chunks_scratch_bytes(const Chunks& chunks) {
  return static_cast<int64_t>(sizeof(ChunkState)) + before_bytes(chunks) +
         chunks.capacity() * static_cast<int64_t>(sizeof(Chosen));
}

cudaError_t launch_select_chunks(const SelectChunksLaunch& args, cudaStream_t stream) {
  ChunkScratch scratch = {static_cast<ChunkState*>(args.scratch), nullptr, nullptr};
  scratch.before = reinterpret_cast<uint64_t*>(scratch.state + 1);
  scratch.chosen = reinterpret_cast<Chosen*>(scratch.before + args.chunks.count() + 1);
  const int64_t blocks = blocks_for(args.chunks.count(), 1, args.max_blocks);
  GCEXT_LAUNCH(chunks_clear_kernel, 1, kChunkThreads, stream, scratch.state);
  if (args.in_place) {
    const int64_t wide = blocks_for(args.chunks.n, kChunkThreads, args.max_blocks);
    GCEXT_LAUNCH(chunks_check_kernel, wide, kChunkThreads, stream, args.source.tensor,
                 args.chunks.n, scratch.state);
  }
  GCEXT_LAUNCH(chunks_choose_kernel, blocks, kChunkThreads, stream, args, scratch);
  GCEXT_LAUNCH(chunks_settle_kernel, 1, kChunkThreads, stream, args, scratch);
  GCEXT_LAUNCH(chunks_emit_kernel, blocks, kChunkThreads, stream, args, scratch);
  return cudaSuccess;
}

}  // namespace gcext
