// Kernels of which it is known what they ask of memory: the counter's own test.
#include "../../cuda/common.cuh"
#include "emu.h"

namespace {

struct alignas(8) Pair {
  uint32_t a, b;
};
struct Long {
  double x[8];
};

// Where GCC keeps what it is given: a caller must not know.
__attribute__((noinline)) void keep(const void* at) { asm volatile("" ::"r"(at) : "memory"); }

__global__ void traffic_kernel(int what, Long given, float* x, uint32_t* words, Pair* pairs,
                               Long* longs) {
  __shared__ uint32_t cell[32 * 33];
  __shared__ float4 quad[32];
  const unsigned t = threadIdx.x, lane = t % 32;
  float sum = 0;
  switch (what) {
    case 0:  // consecutive words
      sum = x[t];
      break;
    case 1:  // every other
      sum = x[2 * t];
      break;
    case 2:
      sum = x[8];
      break;
    case 3: {  // 16 bytes a lane, read and written
      const float4 v = __ldcs(reinterpret_cast<const float4*>(x) + t);
      reinterpret_cast<float4*>(x)[t] = float4{v.w, v.z, v.y, v.x};
      break;
    }
    case 4:  // from the middle of a sector on
      sum = x[t + 1];
      break;
    case 5:
      pairs[t] = {t, lane};
      break;
    case 6:
      longs[t] = given;
      break;
    case 7:  // lanes that go round a loop less often meet the others where they do
      for (unsigned i = 0; i < lane % 4; ++i) sum += x[32 * i + lane];
      break;
    case 8:
      cell[lane] = t;
      break;
    case 9:
      cell[2 * lane] = t;
      break;
    case 10:
      cell[32 * lane] = t;
      break;
    case 11:
      cell[33 * lane] = t;
      break;
    case 12:
      cell[7] = t;
      break;
    case 13:  // two turns of 16 lanes
      reinterpret_cast<uint64_t*>(cell)[lane] = t;
      break;
    case 14:
      atomicAdd(words, 1u);
      break;
    case 15:
      atomicAdd(&words[lane % 4], 1u);
      break;
    case 16:
      cell[lane] = 0;
      __syncthreads();
      atomicAdd(&cell[lane / 2], 1u);
      __syncthreads();
      break;
    case 17: {  // an array on the stack
      uint32_t own[8] = {t};
      keep(own);
      own[lane % 8] = lane;
      keep(own);
      break;
    }
    case 18:  // the same place, before and after lanes converge
      for (unsigned i = 0; i < 2; ++i) {
        sum += x[32 * i + lane];
        __syncwarp();
      }
      break;
    case 19:  // four turns of eight lanes
      quad[lane] = float4{1, 2, 3, 4};
      keep(quad);
      break;
  }
  keep(&sum);
}

}  // namespace

EXPORT void emu_traffic(int what, float* memory, int64_t warps) {
  GCEXT_LAUNCH(traffic_kernel, 1, static_cast<int>(32 * warps), nullptr, what, Long{}, memory,
               reinterpret_cast<uint32_t*>(memory), reinterpret_cast<Pair*>(memory),
               reinterpret_cast<Long*>(memory));
}
