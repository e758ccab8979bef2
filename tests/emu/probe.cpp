// Kernels of the emulator's own test: they use what it must get right or refuse.
#include "../../cuda/common.cuh"
#include "emu.h"

namespace {

__global__ void probe_kernel(int what, uint32_t* out) {
  __shared__ uint32_t cell[64];
  const unsigned t = threadIdx.x, lane = t % 32, whole = 0xffffffffu;
  switch (what) {
    case 0:  // exchange through shared memory, another warp's cell
      cell[t] = t;
      __syncthreads();
      out[t] = cell[63 - t];
      break;
    case 1:
      out[t] = __ballot_sync(whole, t % 3 == 0);
      break;
    case 2:  // two masks of one warp in different operations at once
      if (lane < 10) {
        out[t] = __ballot_sync(0x3ffu, lane % 2 == 0);
      } else {
        out[t] = __shfl_sync(~0x3ffu, t, 10);
      }
      break;
    case 3:
      out[t] = static_cast<uint32_t>(__syncthreads_count(t % 5 == 0) * 4 +
                                     __syncthreads_or(t == 63) * 2 + __syncthreads_and(t < 63));
      break;
    case 4:
      out[t] = __match_any_sync(whole, lane % 4);
      break;
    case 5:
      out[t] = __shfl_up_sync(whole, t, 3) * 1000000 + __shfl_down_sync(whole, t, 3) * 1000 +
               __shfl_xor_sync(whole, t, 1);
      break;
    case 6:  // read before anything was written
      out[t] = cell[t];
      break;
    case 7:  // a race: who comes last depends on the schedule
      cell[0] = t;
      __syncthreads();
      out[t] = cell[0];
      break;
    case 8:  // deadlock: half of the warp waits for the other half, which waits at a barrier
      if (lane < 16) {
        __syncthreads();
      } else {
        __syncwarp();
      }
      break;
    case 9:  // a mask without the caller
      __ballot_sync(1u, 1);
      break;
    case 10:  // lanes of one mask in different operations
      if (lane < 16) {
        __any_sync(whole, 1);
      } else {
        __all_sync(whole, 1);
      }
      break;
    case 11:  // threads in different barriers
      if (t < 32) {
        __syncthreads();
      } else {
        __syncthreads_or(1);
      }
      break;
  }
}

}  // namespace

EXPORT void emu_probe(int what, uint32_t* out) {
  GCEXT_LAUNCH(probe_kernel, 1, 64, nullptr, what, out);
}
