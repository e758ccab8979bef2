// Kernels for the test of the race check: each with the statement that orders it, and without.
#include "../../cuda/common.cuh"
#include "emu.h"

namespace {

enum What {
  kBarrier,      // another warp's cell of shared memory
  kSyncWarp,     // another lane's
  kRelease,      // the last block adds up what the others have stored: the fence before the ticket
  kAcquire,      // the same: the fence behind it
  kFenceOfAll,   // the same, stored by all threads of a block: a fence by one is not enough
  kOneAddress,   // two blocks count in one word: with an atomic
  kSharedAlone,  // shared memory of two blocks is at the same place: no race
  kShuffle,      // a shuffle is no __syncwarp
  kWait,         // a block waits for the one before it
  kVolatile,     // the same, its flag no volatile
  kByte,         // neighbouring bytes are no race, the same byte is
};

constexpr int kThreads = 64, kWaitingBlocks = 4;

__device__ void last_adds(const What what, const bool right, uint32_t* words) {
  __shared__ uint32_t last;
  uint32_t *const ticket = words, *const stored = words + 1;
  const unsigned t = threadIdx.x;
  if (what == kFenceOfAll || t == 0) stored[blockIdx.x * kThreads + t] = 1;
  if (what == kFenceOfAll ? right || t == 0 : what == kAcquire || right) __threadfence();
  __syncthreads();
  if (t == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (last == 0) return;
  if (what != kAcquire || right) __threadfence();
  uint32_t sum = 0;
  for (unsigned i = t; i < gridDim.x * kThreads; i += kThreads) sum += stored[i];
  if (sum > gridDim.x) words[0] = 0;
}

__global__ void race_probe_kernel(What what, bool right, uint32_t* words) {
  __shared__ uint32_t cell[kThreads];
  const unsigned t = threadIdx.x, lane = t % 32;
  uint32_t* const out = words + 4096 + blockIdx.x * kThreads;
  switch (what) {
    case kBarrier:
      cell[t] = t;
      if (right) __syncthreads();
      out[t] = cell[kThreads - 1 - t];
      break;
    case kSyncWarp:
      cell[t] = t;
      if (right) __syncwarp();
      out[t] = cell[t ^ 1];
      break;
    case kRelease:
    case kAcquire:
    case kFenceOfAll:
      last_adds(what, right, words);
      break;
    case kOneAddress:
      if (t == 0) {
        if (right) {
          atomicAdd(words, 1u);
        } else {
          ++*words;
        }
      }
      break;
    case kSharedAlone:
      cell[t] = t;
      if (t == 0) atomicAdd(words, 1u);  // the other block has its turn
      out[t] = cell[t];
      break;
    case kShuffle:
      cell[t] = t;
      __shfl_sync(gcext::kWholeWarp, t, 0);
      if (right) __syncwarp();
      out[t] = cell[t ^ 1];
      break;
    case kWait:
    case kVolatile:
      if (t == 0) {
        const unsigned own = blockIdx.x;
        volatile uint32_t* const flag = words;
        uint32_t* const sum = words + kWaitingBlocks;
        while (own > 0 && flag[own - 1] == 0) continue;
        __threadfence();
        sum[own] = own > 0 ? sum[own - 1] + 1 : 1;
        if (what == kVolatile || right) __threadfence();
        if (what == kVolatile && !right) {
          words[own] = 1;
        } else {
          flag[own] = 1;
        }
      }
      break;
    case kByte:
      reinterpret_cast<uint8_t*>(words)[right ? t : t / 2] = static_cast<uint8_t>(lane);
      break;
  }
}

}  // namespace

// words: 8,192 of them, zeros.
EXPORT void emu_race_probe(int what, int right, int64_t blocks, uint32_t* words) {
  GCEXT_LAUNCH(race_probe_kernel, blocks, kThreads, nullptr, static_cast<What>(what), right != 0,
               words);
}
