// select on CUDA: the algorithm, and what its kernels share. csrc/select/select.h has the contract.
//
//   elements  |--tile--|--tile--|--tile--|--tile--|--tile--|-    a tile: 4,096 elements
//             <-------- block 0 ---------><-------- block 1 ---  a block: a contiguous range
//   pool      [slab 0][slab 1][slab 2][slab 3] ...               a slab: candidates of one block
//
// 1. Open (select_open.cuh): clear the state; guess from a sample a bound that the k-th key does
//    not fall below. The in-place form also validates tensor, as nothing may be written where it
//    is not finite.
// 2. Stream (select_stream.cuh), the only pass over all the data: acc = a*tensor + b*memory to out,
//    and the candidates, keys from the bound on, in order of index, to slabs that a block takes
//    from the pool as it needs them. A bracket that is too low, or too many candidates for the
//    pool, shows in the counts: then every later step reads all elements of the stored acc instead
//    of the candidates. So the result is exact whatever the sample was, without the host.
// 3. Report: status and where. From here on nothing is done if the status is set, but restoring.
// 4. Rounds of a radix select (select_finish.cuh) find the k-th key, 11 bits each: a histogram of
//    the keys of an interval, walked from the top. It begins at the bound, in steps of 2^9, which
//    takes two rounds; or, where the k-th key is 2^20 keys above or there is no bound, takes
//    those of all 31 bits. What is left of the rank is the number of ties due.
// 5. Tally: keys greater than and equal to the k-th per block, the exact sum of the greater ones by
//    exponent; a scan over the blocks; the count, and the mean correctly rounded.
// 6. Emit in order of index: an element with g greater and e equal ones before it goes to place g +
//    min(e, ties due), so ties go to the lowest indices. out is updated in the same pass, or, with
//    next, the first tie that is not due is the cut there.
//
// Steps 4 to 6 are one launch: its blocks draw tickets, in the order of steps and within a step of
// the stream's blocks, and wait until the step before is done for their item. Whoever is waited for
// has drawn a lower ticket, so is running: no number of blocks must run at once. Where a step ends
// with something that needs all of it, the block that comes last does it. A tiny item is one
// block's work from end to end (select_tiny.cuh), with all elements for candidates.
//
// Everything that blocks add up is an integer, so the result does not depend on the order of
// execution.
//
// Where k exceeds the number of non-zeros, the k-th key is 0: all non-zeros are greater, and no tie
// is due. Among candidates, of which 0 is none, the search finds no digit but zeros: the same key.
//
// Traffic, in words an element: 3 for the stream (4 in place: tensor twice), and for the few
// candidates 2 written, 4*2 read, and what is sent.
#pragma once

#include "common.cuh"
#include "select_launch.h"
#include "sum.cuh"

namespace gcext {

constexpr int kSelectThreads = 256;
constexpr int kWideThreads = 1024;  // where one block has an item to itself
constexpr int kWarps = kSelectThreads / kWarp;
constexpr int kQuads = 4;  // of four elements, that a thread has in flight
constexpr int kSelectTile = kSelectThreads * kQuads * 4;
constexpr int kSlabs = 16;  // that a block may need
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kTopShift = 20;              // of the digits of an interval that holds all keys
constexpr int kBoundShift = 9;             // of one that begins at a bound
constexpr int kRounds = 4;                 // at most: shifts 9, 20, 9, 0
constexpr int kAhead = 4;                  // loads in flight in the later passes
constexpr uint32_t kNoBound = UINT32_MAX;  // above every key, NaN's too: no candidates

struct alignas(8) Candidate {
  uint32_t place;  // in its block's range
  uint32_t bits;   // of acc
};

// From the stream, candidates; from the tally, keys in the block's range, then in those before it.
struct BlockCounts {
  uint64_t greater, equal, candidates;
};

struct SelectPlan {
  int64_t blocks, step;  // a block's range, whole tiles
  int64_t slabs;         // in the pool
  int slab_shift;        // a slab is 1 << slab_shift candidates

  GCEXT_HD int64_t pool_capacity() const { return slabs << slab_shift; }
};

// Candidates are collected unless they would be more than a quarter of all. The pool holds 2k +
// n/16 of them and a slab a block, and never takes more than 7/8 of n words.
GCEXT_HD inline SelectPlan plan_of(int64_t n, int64_t k, const SelectSchedule& how) {
  SelectPlan plan = {};
  plan.step = ceil_div(ceil_div(n, kSelectTile), how.max_blocks) * kSelectTile;
  plan.blocks = ceil_div(n, plan.step);
  while ((int64_t{kSlabs} << plan.slab_shift) < plan.step) ++plan.slab_shift;
  if (k == 0 || k > n / 4) return plan;
  const int64_t slab = int64_t{1} << plan.slab_shift;
  const int64_t wanted = plan.blocks + ceil_div(2 * k + n / 16, slab), most = n / 16 * 7 / slab;
  plan.slabs = wanted < most ? wanted : most;
  return plan;
}

// What the blocks of an item do together; see `arrived`.
enum Phase { kPhaseRound, kPhaseTally = kPhaseRound + kRounds, kPhaseEmit, kPhases };

// Where the search for the k-th key stands.
struct Search {
  uint64_t rank;  // of the k-th key, among those of the interval; at last, the ties due
  uint32_t key;   // where the interval begins; at last, the k-th key
  int32_t width;  // log2 of the interval's length, or 32: no end
  int32_t shift;  // of the next round's digits, or -1: found
  uint32_t mean;  // bits; after the tally
};

// The search for the k-th of all keys.
__device__ inline Search all_keys(int64_t k) {
  return {static_cast<uint64_t>(k), 0, 32, kTopShift, 0};
}

// What no block changes once the stream is done, or before it, and every block reads.
struct SelectHead {
  SelectItem item;
  SelectPlan plan;
  Candidate* pool;
  uint32_t* slab_of;  // kSlabs a block
  BlockCounts* counts;
  uint32_t bound;    // candidates' least key
  uint32_t all;      // every element is read: the candidates are useless
  uint32_t refused;  // the status is not kSelectOk
};

// One item on the device, from open to emit.
struct SelectWork {
  SelectHead head;
  Search search;
  uint64_t digits[kDigits];  // keys by digit, of those of the interval
  uint64_t bins[kBins];      // sums of mantissas above the k-th key, as in select.h
  FirstNonFinite first;
  uint64_t collected;  // candidates
  uint32_t slabs_taken;
  uint32_t overflow;          // of the pool
  uint32_t streamed;          // blocks that are done with the stream
  uint32_t arrived[kPhases];  // and with each phase
  uint32_t done;              // phases that are
};

// All items of a launch sequence: block b of the grid works for the item with first[j] <= b.
struct SelectGrid {
  SelectWork* works;
  int64_t* first;
  uint32_t* ticket;  // the next one of steps 4 to 6
  int64_t count;
  int64_t blocks;  // of all items
};

struct Part {
  SelectWork* work;
  int64_t block;  // of the item's
};

__device__ inline Part part_of(const SelectGrid& grid, int64_t block) {
  const int64_t item = last_not_above(grid.first, grid.count, block);
  return {grid.works + item, block - grid.first[item]};
}

// acc after step 2: stored, or recomputed where it is not.
__device__ inline float stored_acc(const Source& source, int64_t i) {
  return source.out != nullptr ? source.out[i] : source.a * source.tensor[i];
}

struct Element {
  int64_t i;
  float acc;
  bool inside;  // else acc is 0
};

// What a block reads after the stream, in order of index: elements of a range, or candidates.
struct Share {
  Source source;
  int64_t begin;            // of the range
  int64_t size;             // elements, or candidates
  const Candidate* pool;    // nullptr: elements
  const uint32_t* slab_of;  // the block's, in shared memory
  int slab_shift;

  __device__ Element at(int64_t e) const {
    if (e >= size) return {0, 0.0f, false};
    if (pool == nullptr) return {begin + e, stored_acc(source, begin + e), true};
    const int64_t slab = slab_of[e >> slab_shift];
    const Candidate c = pool[(slab << slab_shift) + (e & ((int64_t{1} << slab_shift) - 1))];
    return {begin + c.place, float_of(c.bits), true};
  }
};

// body(elements) for the whole share in order, kAhead of a thread at a time, all loads in flight. A
// warp has consecutive ones, a row of lanes after the other, so that emission synchronizes with
// other warps once a turn and not once a row. Every thread runs every turn.
template <class Body>
__device__ inline void for_rows(const Share& share, const Body& body) {
  const int64_t lead = int64_t{threadIdx.x / kWarp} * kAhead * kWarp + threadIdx.x % kWarp;
  for (int64_t at = 0; at < share.size; at += int64_t{kAhead} * blockDim.x) {
    Element element[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) element[j] = share.at(at + lead + j * kWarp);
    body(element);
  }
}

// body(element), in any order; it may hold warp operations, but no barrier.
template <class Body>
__device__ inline void for_elements(const Share& share, const Body& body) {
  for_rows(share, [&](const Element(&element)[kAhead]) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (__any_sync(kWholeWarp, element[j].inside)) body(element[j]);
    }
  });
}

// Where the rank-th of the counted things is, counted from the top; `rank` becomes its rank within
// that count. The size is a multiple of the block's. Both results are in shared memory.
struct Found {
  uint32_t digit;
  uint64_t rank;
};

template <class Count>
__device__ inline void find_from_top(const Count* counts, int size, uint64_t rank,
                                     uint64_t* warp_sums, Found* found) {
  const int own = size / static_cast<int>(blockDim.x);
  const int top = size - 1 - static_cast<int>(threadIdx.x) * own;
  uint64_t sum = 0, total;
  for (int i = 0; i < own; ++i) sum += counts[top - i];
  uint64_t passed = block_exclusive_sum(sum, warp_sums, &total);
  if (rank > passed && rank <= passed + sum) {  // one thread, or none
    int digit = top;
    for (; rank > passed + counts[digit]; --digit) passed += counts[digit];
    *found = {static_cast<uint32_t>(digit), rank - passed};
  }
}

// True in every thread of the block that comes last here; it sees what the others wrote before.
// `flag` is shared memory.
__device__ inline bool arrives_last(uint32_t* arrived, int64_t blocks, uint32_t* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *flag = atomicAdd(arrived, 1u) == blocks - 1;
  __syncthreads();
  __threadfence();
  return *flag != 0;
}

// Waits until *count is at least `least`; what it is then, and what was written before it became
// that is seen. Every thread must call it; `value` is shared memory.
__device__ inline uint32_t wait_for(uint32_t* count, uint32_t least, uint32_t* value) {
  if (threadIdx.x == 0) {
    do {
      *value = polled(count);
    } while (*value < least);
    __threadfence();
  }
  __syncthreads();
  return *value;
}

}  // namespace gcext
