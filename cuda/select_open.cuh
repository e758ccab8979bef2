// select on CUDA, step 1 of select.cuh: open, sample, check.
#pragma once

#include "select.cuh"

namespace gcext {

constexpr int kGroup = kWarp;       // consecutive elements sampled together: a cache line
constexpr int kGroupsPerWarp = 32;  // 32,768 samples: +-28 % of the candidates at p = 0.01
constexpr int kSampleAhead = 8;     // of them, loads in flight
constexpr int kCoarseShift = 19;    // 8 bits of exponent and 4 of mantissa
constexpr int kCoarse = 1 << 12;    // more than kInfKey >> kCoarseShift
constexpr int kFineShift = 8;       // the bound is this coarse: 2^-15 of itself

// An item on its way to the device, as a kernel's argument: a copy from the host's pageable memory
// would wait for the stream.
struct SelectTask {
  SelectItem item;
  int64_t first_block;
  int64_t offset;  // of its pool in scratch
};

constexpr int kTaskChunk = 35;  // kernel arguments may take 4 KiB

struct TaskChunk {
  SelectTask task[kTaskChunk];
};

// Step 1: a key that the k-th one does not fall below but for a chance of 5 sigma; 1 where the
// sample cannot tell. Groups of whole cache lines, one anywhere within each of equal strata. Every
// thread of a block of kWideThreads.
//
// Neighbours in a layer resemble each other, so the samples are not independent; but two
// neighbouring strata differ by chance alone, which gives the spread of a count.
//
// The bound is an order statistic, not interpolated: with feedback the magnitudes end in a cliff
// just below the last threshold, and an interpolated bound would fall off it.
struct SampleMemory {
  uint32_t counts[kCoarse];
  uint64_t warp_sums[kWideThreads / kWarp];
  Found found;
  uint32_t squares;
};

__device__ inline uint32_t sampled_bound(const Source& source, int64_t n, int64_t k,
                                         SampleMemory* shared) {
  constexpr int kWideWarps = kWideThreads / kWarp;
  const int64_t strata = n / kGroup / 8 / kWideWarps;
  const int own = static_cast<int>(strata < kGroupsPerWarp ? strata : kGroupsPerWarp) & ~1;
  if (own == 0) return 1;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t stratum = n / kGroup / (own * kWideWarps);
  const Held held = held_of(source);
  uint32_t keys[kGroupsPerWarp];
#pragma unroll
  for (int from = 0; from < kGroupsPerWarp; from += kSampleAhead) {
    // All addresses first, then all loads: one latency for as many groups.
    int64_t i[kSampleAhead];
    float tensor[kSampleAhead], memory[kSampleAhead];
#pragma unroll
    for (int j = 0; j < kSampleAhead; ++j) {
      const int64_t g = warp * own + (from + j < own ? from + j : 0);
      const uint64_t mixed = (static_cast<uint64_t>(g) + 1) * 0x9e3779b97f4a7c15u >> 33;
      const int64_t within = static_cast<int64_t>(mixed * static_cast<uint64_t>(stratum) >> 31);
      i[j] = (g * stratum + within) * kGroup + lane;
    }
#pragma unroll
    for (int j = 0; j < kSampleAhead; ++j) {
      tensor[j] = source.tensor[i[j]];
      memory[j] = source.memory == nullptr ? 0.0f : source.memory[i[j]];
    }
#pragma unroll
    for (int j = 0; j < kSampleAhead; ++j) {
      float acc = source.a * tensor[j];
      if (source.memory != nullptr) acc += source.b * held.rest(memory[j], i[j]);
      const uint32_t key = key_of(acc) < kInfKey ? key_of(acc) : kInfKey;
      keys[from + j] = from + j < own ? key : 0;
    }
  }
  const auto clear = [&] {
    for (int i = threadIdx.x; i < kCoarse; i += kWideThreads) shared->counts[i] = 0;
    if (threadIdx.x == 0) shared->squares = 0;
    __syncthreads();
  };
  clear();
#pragma unroll
  for (int j = 0; j < kGroupsPerWarp; ++j) {
    if (j < own) add_to_bin(shared->counts, static_cast<int>(keys[j] >> kCoarseShift));
  }
  __syncthreads();

  const uint64_t samples = static_cast<uint64_t>(own) * kWideThreads;
  const double share = static_cast<double>(k) / static_cast<double>(n);
  const uint64_t rank = 1 + static_cast<uint64_t>(share * static_cast<double>(samples));
  if (rank > samples) return 1;
  find_from_top(shared->counts, kCoarse, rank, shared->warp_sums, &shared->found);
  __syncthreads();
  const uint32_t edge = shared->found.digit << kCoarseShift;
#pragma unroll
  for (int j = 0; j < kGroupsPerWarp; j += 2) {
    if (j >= own) continue;
    const int difference = __popc(__ballot_sync(kWholeWarp, keys[j] >= edge)) -
                           __popc(__ballot_sync(kWholeWarp, keys[j + 1] >= edge));
    if (lane == 0) atomicAdd(&shared->squares, static_cast<uint32_t>(difference * difference));
  }
  __syncthreads();
  const float spread = sqrtf(static_cast<float>(shared->squares));
  const uint64_t wanted = rank + static_cast<uint64_t>(5 * spread) + 8;
  if (wanted > samples) return 1;
  find_from_top(shared->counts, kCoarse, wanted, shared->warp_sums, &shared->found);
  __syncthreads();
  const uint32_t coarse = shared->found.digit;
  const uint64_t left = shared->found.rank;
  clear();
#pragma unroll
  for (int j = 0; j < kGroupsPerWarp; ++j) {
    const bool here = j < own && keys[j] >> kCoarseShift == coarse;
    const uint32_t fine = keys[j] % (1u << kCoarseShift) >> kFineShift;
    add_to_bin(shared->counts, here ? static_cast<int>(fine) : -1);
  }
  __syncthreads();
  find_from_top(shared->counts, kCoarse, left, shared->warp_sums, &shared->found);
  __syncthreads();
  const uint32_t bound = coarse << kCoarseShift | shared->found.digit << kFineShift;
  return bound < 1 ? 1 : bound < kInfKey ? bound : kInfKey - 1;
}

// Step 1, a block an item.
__global__ void __launch_bounds__(kWideThreads)
    select_open_kernel(TaskChunk chunk, int64_t at, SelectGrid grid, char* scratch,
                       SelectSchedule how) {
  __shared__ SampleMemory shared;
  const SelectTask& task = chunk.task[blockIdx.x];
  SelectWork& work = grid.works[at + blockIdx.x];
  const SelectPlan plan = plan_of(task.item.n, task.item.k, how);
  uint64_t* const words = reinterpret_cast<uint64_t*>(&work);
  for (unsigned i = threadIdx.x; i < sizeof(SelectWork) / sizeof *words; i += kWideThreads)
    words[i] = 0;
  __syncthreads();
  uint32_t bound = plan.slabs == 0 ? kNoBound : how.distrust ? kInfKey : 1;
  if (bound == 1) bound = sampled_bound(task.item.source, task.item.n, task.item.k, &shared);
  if (threadIdx.x != 0) return;
  work.head.item = task.item;
  work.head.plan = plan;
  work.head.pool = reinterpret_cast<Candidate*>(scratch + task.offset);
  work.head.counts = reinterpret_cast<BlockCounts*>(work.head.pool + plan.pool_capacity());
  work.head.slab_of = reinterpret_cast<uint32_t*>(work.head.counts + plan.blocks);
  work.head.bound = bound;
  work.head.all = plan.slabs == 0;
  work.search = all_keys(task.item.k);
  work.first = {kNowhere, kNowhere, kNowhere};
  grid.first[at + blockIdx.x] = task.first_block;
  if (at + blockIdx.x == 0) *grid.ticket = 0;
}

// Step 1 of the in-place form, before anything is written: checks tensor, from its end to its
// beginning, so that the stream finds the beginning in the cache.
__global__ void __launch_bounds__(kWideThreads) select_check_kernel(SelectGrid grid) {
  __shared__ Part part;
  __shared__ SharedCopy<SelectHead> copy;
  if (threadIdx.x == 0) part = part_of(grid, gridDim.x - 1 - static_cast<int64_t>(blockIdx.x));
  __syncthreads();
  copy.take(part.work->head);
  const SelectHead& head = *copy;
  if (!head.item.in_place) return;
  const float* tensor = head.item.source.tensor;
  const int64_t begin = part.block * head.plan.step;
  const int64_t end = begin + head.plan.step < head.item.n ? begin + head.plan.step : head.item.n;
  const bool aligned = is_aligned(tensor);
  uint64_t first = kNowhere;
  for (int64_t i = begin + 4 * static_cast<int64_t>(threadIdx.x); i < end; i += kSelectTile) {
    const Quad t = load_quad(tensor, i, end, aligned);
    for (int c = 0; c < 4; ++c) {
      const uint64_t where = static_cast<uint64_t>(i + c);
      if (key_of(t.x[c]) >= kInfKey && where < first) first = where;
    }
  }
  if (first != kNowhere) atomic_min(&part.work->first.tensor, first);
}

}  // namespace gcext
