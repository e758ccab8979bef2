// select on CUDA, steps 2 and 3 of select.cuh: stream, report.
#pragma once

#include "select.cuh"

namespace gcext {

// Step 3, one thread.
__device__ inline void end_stream(SelectWork& work) {
  SelectHead& head = work.head;
  head.refused = report(work.first, head.item.source.out != nullptr, head.item.info) != kSelectOk;
  begin_next(head.item.source, head.item.next, head.refused);
  const bool enough = work.collected >= work.search.rank || head.bound == 1;
  if (work.overflow || !enough) head.all = 1;
  if (!head.all && head.bound != 1) {
    work.search.key = head.bound;
    work.search.shift = kBoundShift;
  }
}

// What a lane has of a tile: four consecutive elements four times, as its warp has 512.
//
//   quad 0: lane 0 |....| lane 1 |....| ... lane 31 |....|   quad 1: lane 0 |....| ...
//
// Instructions, not bytes, would bound a stream that checks for each element whether it may be
// read, whether it is finite and how many candidates come before it. So a tile that is all there,
// and on a multiple of 16 bytes, is loaded and stored without checks; the largest of the lane's
// keys tells for all 16 whether they are finite; candidates become a bit each, and the lanes'
// counts of all four quads are summed in the bytes of one word.
struct Lane {
  Quad acc[kQuads];
  uint32_t candidates;  // bit 4q + c: element c of quad q
  uint32_t top;         // largest key
};

__device__ inline int64_t quad_at(int q) { return int64_t{q} * 4 * kWarp; }

// Loads the lane's quads from element i on: four accesses in flight.
__device__ inline void load_lane(const float* p, int64_t i, int64_t end, bool whole, Quad* quad) {
  if (whole) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) quad[q] = load_whole_quad(p, i + quad_at(q));
  } else {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) quad[q] = load_quad(p, i + quad_at(q), end, false);
  }
}

// Step 2 for one lane of a tile: adds, stores, marks what is a candidate.
__device__ inline Lane stream_lane(const Source& source, const Held& held, int64_t i, int64_t end,
                                   bool whole, uint32_t bound) {
  Lane lane = {};
  Quad memory[kQuads];
  load_lane(source.tensor, i, end, whole, lane.acc);
  if (source.memory != nullptr) load_lane(source.memory, i, end, whole, memory);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int c = 0; c < 4; ++c) lane.acc[q].x[c] *= source.a;
  }
  if (source.memory != nullptr) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        lane.acc[q].x[c] += source.b * held.rest(memory[q].x[c], i + quad_at(q) + c);
    }
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint32_t key = key_of(lane.acc[q].x[c]);
      lane.top = key > lane.top ? key : lane.top;
      if (key >= bound) lane.candidates |= 1u << (4 * q + c);
    }
  }
  if (source.out == nullptr) return lane;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    if (whole) {
      store_whole_quad(source.out, i + quad_at(q), lane.acc[q]);
    } else {
      store_quad(source.out, i + quad_at(q), end, false, lane.acc[q]);
    }
  }
  return lane;
}

// The lane's element e = 4q + c; an index that is not known when compiling would put the array to
// local memory.
__device__ inline float element_of(const Lane& lane, int e) {
  Quad quad = lane.acc[0];
#pragma unroll
  for (int q = 1; q < kQuads; ++q) {
    if (e >> 2 == q) quad = lane.acc[q];
  }
  float x = quad.x[0];
#pragma unroll
  for (int c = 1; c < 4; ++c) {
    if ((e & 3) == c) x = quad.x[c];
  }
  return x;
}

// Four counts, one for each quad: at most 4 in a lane and 128 in a warp.
__device__ inline uint32_t counts_of(uint32_t candidates) {
  const uint32_t pairs = (candidates & 0x5555u) + (candidates >> 1 & 0x5555u);
  const uint32_t quads = (pairs & 0x3333u) + (pairs >> 2 & 0x3333u);
  return (quads & 0xfu) | (quads & 0xf0u) << 4 | (quads & 0xf00u) << 8 | (quads & 0xf000u) << 12;
}

// The bytes of a word as the halves of a longer one.
__device__ inline uint64_t spread_bytes(uint32_t word) {
  const uint32_t low = (word & 0xffu) | (word & 0xff00u) << 8;
  const uint32_t high = (word >> 16 & 0xffu) | (word >> 8 & 0xff0000u);
  return static_cast<uint64_t>(high) << 32 | low;
}

// Where a lane's candidates of a tile go, counted from its warp's first: in order of quads, then of
// lanes.
struct Places {
  uint64_t first;  // a half a quad: where this lane's go
  uint32_t all;    // of the warp

  __device__ static Places of(uint32_t candidates) {
    const uint32_t own = counts_of(candidates);
    const uint32_t sum = warp_inclusive_sum(own);
    const uint64_t quads = spread_bytes(__shfl_sync(kWholeWarp, sum, kWarp - 1));
    const uint64_t sums = quads * 0x0001000100010001u;  // of the quads up to this one
    return {(sums << 16) + spread_bytes(sum - own), static_cast<uint32_t>(sums >> 48)};
  }
  __device__ uint32_t operator()(uint32_t candidates, int e) const {
    const uint32_t of_lane = candidates >> (e & ~3) & ((1u << (e & 3)) - 1);
    return static_cast<uint32_t>(first >> (16 * (e >> 2)) & 0xffffu) + __popc(of_lane);
  }
};

// Checks again a lane's elements, from i on, whose `top` is not finite.
__device__ inline void find_non_finite(const Source& source, bool in_place, const Lane& lane,
                                       int64_t i, FirstNonFinite* first) {
  FirstNonFinite own = {kNowhere, kNowhere, kNowhere};
  for (int e = 4 * kQuads - 1; e >= 0; --e) {
    const uint64_t where = static_cast<uint64_t>(i + quad_at(e >> 2) + (e & 3));
    // Where the sum is finite, so are the two.
    if (key_of(element_of(lane, e)) < kInfKey) continue;
    own.sum = where;
    // In place memory is gone: only where the sum is not finite can be reported.
    if (in_place) continue;
    if (key_of(source.tensor[where]) >= kInfKey) own.tensor = where;
    if (source.memory != nullptr && key_of(source.memory[where]) >= kInfKey) own.memory = where;
  }
  if (own.sum != kNowhere) atomic_min(&first->sum, own.sum);
  if (own.tensor != kNowhere) atomic_min(&first->tensor, own.tensor);
  if (own.memory != kNowhere) atomic_min(&first->memory, own.memory);
}

// Steps 2 and 3. One barrier a tile: the warps' counts of a tile are read while those of the next
// are written elsewhere. A warp's candidates of a tile go through shared memory, so that it writes
// them side by side.
__global__ void __launch_bounds__(kSelectThreads, 3) select_stream_kernel(SelectGrid grid) {
  __shared__ SharedCopy<SelectHead> copy;
  __shared__ Candidate staged[kWarps][kSelectTile / kWarps];
  __shared__ uint32_t warp_counts[2][kWarps];
  __shared__ uint32_t slab_of[kSlabs];
  __shared__ uint32_t full, flag;
  __shared__ Part part;
  __shared__ Held held;
  if (threadIdx.x == 0) {
    part = part_of(grid, blockIdx.x);
    held = held_of(part.work->head.item.source);
    full = 0;
  }
  __syncthreads();
  SelectWork& work = *part.work;
  copy.take(work.head);
  const SelectHead& head = *copy;
  const Source& source = head.item.source;
  const bool in_place = head.item.in_place;
  const int64_t begin = part.block * head.plan.step;
  const int64_t end = begin + head.plan.step < head.item.n ? begin + head.plan.step : head.item.n;
  const int shift = head.plan.slab_shift;
  const int warp = threadIdx.x / kWarp, lane_id = threadIdx.x % kWarp;
  const int64_t own_at = warp * (kSelectTile / kWarps) + lane_id * 4;
  const bool aligned =
      is_aligned(source.tensor) && is_aligned(source.memory) && is_aligned(source.out);
  uint32_t bound = head.bound, count = 0, slabs = 0;
  int parity = 0;
  const bool untouchable = in_place && work.first.tensor != kNowhere;
  for (int64_t tile = untouchable ? end : begin; tile < end; tile += kSelectTile, parity ^= 1) {
    const int64_t at = tile + own_at;
    const bool whole = aligned && tile + kSelectTile <= end;
    const Lane lane = stream_lane(source, held, at, end, whole, bound);
    if (lane.top >= kInfKey) find_non_finite(source, in_place, lane, at, &work.first);
    const Places place = Places::of(lane.candidates);
    for (uint32_t left = lane.candidates; left != 0; left &= left - 1) {
      const int e = __ffs(static_cast<int>(left)) - 1;
      staged[warp][place(lane.candidates, e)] = {
          static_cast<uint32_t>(at + quad_at(e >> 2) + (e & 3) - begin),
          bits_of(element_of(lane, e))};
    }
    if (lane_id == 0) warp_counts[parity][warp] = place.all;
    __syncthreads();
    uint32_t first = count, tile_count = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) first += warp_counts[parity][w];
      tile_count += warp_counts[parity][w];
    }
    const uint32_t needed = (count + tile_count + (1u << shift) - 1) >> shift;
    if (needed > slabs) {
      if (threadIdx.x == 0) {
        for (uint32_t s = slabs; s < needed; ++s) {
          slab_of[s] = atomicAdd(&work.slabs_taken, 1u);
          if (slab_of[s] >= static_cast<uint32_t>(head.plan.slabs)) full = 1;
        }
      }
      __syncthreads();
      slabs = needed;
      if (full) {
        bound = kNoBound;  // store on, collect no more
        count = 0;
        continue;
      }
    }
    count += tile_count;
    for (uint32_t j = lane_id; j < place.all; j += kWarp) {
      const uint32_t to = first + j;
      const int64_t slab = slab_of[to >> shift];
      head.pool[(slab << shift) + (to & ((1u << shift) - 1))] = staged[warp][j];
    }
    __syncwarp();
  }
  __syncthreads();
  if (full == 0) {
    for (uint32_t s = threadIdx.x; s < slabs; s += kSelectThreads)
      head.slab_of[part.block * kSlabs + s] = slab_of[s];
  }
  if (threadIdx.x == 0) {
    head.counts[part.block].candidates = count;
    if (count != 0) atomic_add(&work.collected, count);
    if (full) atomicOr(&work.overflow, 1u);
  }
  if (arrives_last(&work.streamed, head.plan.blocks, &flag) && threadIdx.x == 0) end_stream(work);
}

}  // namespace gcext
