// select on CUDA, step 1 of select.cuh: open, sample, check.
#pragma once

#include "select.cuh"

namespace gcext {

constexpr int kGroup = kWarp;       // consecutive elements sampled together: a cache line
constexpr int kGroupsPerWarp = 32;  // 32,768 samples: +-28 % of the candidates at p = 0.01
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
  for (int j = 0; j < kGroupsPerWarp; ++j) {
    keys[j] = 0;
    if (j >= own) continue;
    const int64_t g = warp * own + j;
    const uint64_t mixed = (static_cast<uint64_t>(g) + 1) * 0x9e3779b97f4a7c15u;
    const int64_t i = (g * stratum + static_cast<int64_t>(mixed >> 33) % stratum) * kGroup + lane;
    float acc = source.a * source.tensor[i];
    if (source.memory != nullptr) acc += source.b * held.rest(source.memory[i], i);
    keys[j] = key_of(acc) < kInfKey ? key_of(acc) : kInfKey;
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

__device__ inline void take_sample(SelectWork& work, SampleMemory* shared) {
  if (work.bound != 1) return;
  const uint32_t bound = sampled_bound(work.item.source, work.item.n, work.item.k, shared);
  if (threadIdx.x == 0) work.bound = bound;
}

// Step 1, a block an item. The sample of an in-place form is taken beside the check.
__global__ void __launch_bounds__(kWideThreads)
    select_open_kernel(TaskChunk chunk, int64_t at, SelectGrid grid, char* scratch,
                       SelectSchedule how) {
  __shared__ SampleMemory shared;
  const SelectTask& task = chunk.task[blockIdx.x];
  SelectWork& work = grid.works[at + blockIdx.x];
  for (int i = threadIdx.x; i < kDigits; i += kWideThreads) work.digits[i] = 0;
  for (int i = threadIdx.x; i < kBins; i += kWideThreads) work.bins[i] = 0;
  if (threadIdx.x < kPhases) work.arrived[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    const SelectPlan plan = plan_of(task.item.n, task.item.k, how);
    work.item = task.item;
    work.plan = plan;
    work.pool = reinterpret_cast<Candidate*>(scratch + task.offset);
    work.gathered = work.pool + plan.pool_capacity();
    work.counts = reinterpret_cast<BlockCounts*>(work.gathered + plan.gathered_capacity());
    work.slab_of = reinterpret_cast<uint32_t*>(work.counts + plan.blocks);
    work.first = {kNowhere, kNowhere, kNowhere};
    work.collected = 0;
    work.rank = static_cast<uint64_t>(task.item.k);
    work.key = work.mean = work.slabs_taken = work.overflow = work.refused = 0;
    work.all = plan.slabs == 0;
    work.bound = work.all ? kNoBound : how.distrust ? kInfKey : 1;
    grid.first[at + blockIdx.x] = task.first_block;
  }
  __syncthreads();
  if (!task.item.in_place) take_sample(work, &shared);
}

// Step 1 of the in-place form, before anything is written: the grid's first blocks sample an item
// each, the others check tensor, from its end to its beginning, so that the stream finds the
// beginning in the cache.
__global__ void __launch_bounds__(kWideThreads) select_check_kernel(SelectGrid grid) {
  __shared__ SampleMemory shared;
  if (blockIdx.x < grid.count) {
    SelectWork& work = grid.works[blockIdx.x];
    if (work.item.in_place) take_sample(work, &shared);
    return;
  }
  const SelectPart part = part_of(grid, gridDim.x - 1 - static_cast<int64_t>(blockIdx.x));
  SelectWork& work = *part.work;
  if (!work.item.in_place) return;
  const float* tensor = work.item.source.tensor;
  const int64_t begin = part.block * work.plan.step;
  const int64_t end = begin + work.plan.step < work.item.n ? begin + work.plan.step : work.item.n;
  const bool aligned = is_aligned(tensor);
  uint64_t first = kNowhere;
  for (int64_t i = begin + 4 * static_cast<int64_t>(threadIdx.x); i < end; i += kSelectTile) {
    const Quad t = load_quad(tensor, i, end, aligned);
    for (int c = 0; c < 4; ++c) {
      const uint64_t where = static_cast<uint64_t>(i + c);
      if (key_of(t.x[c]) >= kInfKey && where < first) first = where;
    }
  }
  if (first != kNowhere) atomic_min(&work.first.tensor, first);
}

}  // namespace gcext
