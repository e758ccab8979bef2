// vote on CUDA: the kernel and its launch. csrc/vote.h has the contract.
//
// A block owns a run of tiles and, in shared memory, each element's margin: the negative votes less
// the positive ones.
//
//   1. Planes: a thread has 32 elements, a word of every plane, and counts the negative ones as
//      csrc/vote.h does, bit l of each count in its l-th register. So a plane costs about two
//      levels a word, whatever their number.
//   2. Sparse packets: a warp takes a packet, and its entries add to their elements' margins:
//      integers, so no order is seen.
//   3. Spread: the sign of the margin.
//
// Bytes of global memory for n elements: n/8 a plane, 8 an entry, 4*n written.
#include "packet.cuh"
#include "vote_launch.h"

namespace gcext {

constexpr int kVoteThreads = 256;
constexpr int kVoteWarps = kVoteThreads / kWarp;
constexpr int kHeldCursors = 256;  // of sparse packets; those of more are found anew in each tile
static_assert(kVoteTile == kVoteThreads * kWarp, "a word of a plane for each thread");

// Threads write a word's elements, or consecutive ones: no two lanes in one bank either way.
__device__ inline int margin_at(int element) { return element + element / kWarp; }

// Bits [8*at, 8*at + 32) of a plane of `bytes` bytes; zeros after it.
__device__ inline uint32_t vote_word(const uint8_t* plane, int64_t at, int64_t bytes) {
  if (at + 4 <= bytes && reinterpret_cast<uintptr_t>(plane + at) % 4 == 0)
    return *reinterpret_cast<const uint32_t*>(plane + at);
  uint32_t word = 0;
  for (int64_t b = 0; b < 4 && at + b < bytes; ++b)
    word |= static_cast<uint32_t>(plane[at + b]) << (8 * b);
  return word;
}

__global__ void __launch_bounds__(kVoteThreads)
    vote_kernel(const WeightedPacket* voters, int64_t planes, int64_t m, int64_t numel, float scale,
                float* out) {
  __shared__ int margin[kVoteTile + kVoteTile / kWarp];
  __shared__ int64_t cursors[kHeldCursors];
  const bool holds = m - planes <= kHeldCursors;
  const Range tiles = range_of_block(ceil_div(numel, kVoteTile));
  const int t = threadIdx.x;
  if (holds && t < m - planes)
    cursors[t] = first_entry_from(voters[planes + t].packet, tiles.begin * kVoteTile);
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t begin = tile * kVoteTile, first = begin / 8 + 4 * t;
    const int size = static_cast<int>(numel - begin < kVoteTile ? numel - begin : kVoteTile);
    uint32_t level[kVoteLevels] = {};
    for (int64_t j = 0; j < planes; ++j) {
      uint32_t carry =
          vote_word(static_cast<const uint8_t*>(voters[j].packet.index), first, ceil_div(numel, 8));
#pragma unroll
      for (int l = 0; l < kVoteLevels; ++l) {
        const uint32_t old = level[l];
        level[l] = old ^ carry;
        carry &= old;
        if (carry == 0) break;
      }
    }
    for (int i = 0; i < kWarp; ++i) {
      int negative = 0;
#pragma unroll
      for (int l = 0; l < kVoteLevels; ++l) negative |= static_cast<int>(level[l] >> i & 1) << l;
      margin[margin_at(kWarp * t + i)] = 2 * negative - static_cast<int>(planes);
    }
    __syncthreads();
    for (int64_t j = planes + t / kWarp; j < m; j += kVoteWarps) {
      const PacketView p = voters[j].packet;
      const int64_t from = holds ? cursors[j - planes] : first_entry_from(p, begin);
      const int64_t next =
          walk_tile(p, from, rows_of(p, kVoteTile, numel), begin, size, [&](int place, float x) {
            if (x != 0) atomicAdd(&margin[margin_at(place)], x < 0 ? 1 : -1);
          });
      __syncwarp();  // every lane has its cursor
      if (holds && t % kWarp == 0) cursors[j - planes] = next;
    }
    __syncthreads();
    for (int i = t; i < size; i += kVoteThreads) {
      const int votes = margin[margin_at(i)];
      const uint32_t sign = votes > 0 ? 0x80000000u : 0;
      out[begin + i] = votes == 0 ? 0.0f : float_of(bits_of(scale) ^ sign);
    }
    __syncthreads();  // the next tile's margins take their place
  }
}

cudaError_t launch_vote(const VoteLaunch& args, cudaStream_t stream) {
  if (const cudaError_t error = launch_take(args.voters, args.m, args.scratch, stream);
      error != cudaSuccess)
    return error;
  GCEXT_LAUNCH(vote_kernel, blocks_for(args.numel, kVoteTile, args.max_blocks), kVoteThreads,
               stream, args.scratch, args.planes, args.m, args.numel, args.scale, args.out);
  return cudaSuccess;
}

}  // namespace gcext
