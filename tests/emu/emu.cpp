// The kernels of cuda/ on the CPU, behind plain C functions for ctypes: the very files that nvcc
// compiles, launch sequences included. Pointers are host memory; null stands for an absent tensor.
#include "../../csrc/fpenv.h"
#include "../../cuda/combine.cu"
#include "../../cuda/select.cu"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Runs lanes, warps and blocks from the last to the first: a result must not depend on it.
EXPORT void emu_reverse(int on) { cuemu::reversed = on != 0; }

EXPORT int64_t emu_select_scratch_bytes() { return gcext::select_scratch_bytes(); }

EXPORT void emu_select(const float* tensor, const float* memory, float* out, int64_t n, int64_t k,
                       float a, float b, int ternary, int wide, int64_t max_blocks, void* index,
                       float* value, int64_t* info, void* scratch) {
  const gcext::KernelFpEnv env;
  gcext::SelectLaunch args = {};
  args.in_place = out != nullptr && memory == nullptr;
  args.source = {tensor, args.in_place ? out : memory, out, a, b};
  args.n = n;
  args.k = k;
  args.ternary = ternary != 0;
  args.index = index;
  args.wide = wide != 0;
  args.value = value;
  args.info = info;
  args.scratch = scratch;
  args.max_blocks = max_blocks;
  gcext::launch_select(args, nullptr);
}

EXPORT void emu_combine(int64_t m, const void* const* index, const float* const* value,
                        const int64_t* k, const int* wide, const int* dense, const double* weight,
                        int64_t numel, int64_t max_blocks, float* out) {
  const gcext::KernelFpEnv env;
  std::vector<gcext::WeightedPacket> packets(m), scratch(m);
  for (int64_t i = 0; i < m; ++i) {
    packets[i].packet = {index[i], value[i], k[i], wide[i] != 0, dense[i] != 0};
    packets[i].weight = weight[i];
  }
  gcext::launch_combine({packets.data(), m, numel, out, scratch.data(), max_blocks}, nullptr);
}

EXPORT void emu_combine_add(float* dense, int64_t numel, const void* index, const float* value,
                            int64_t k, int wide, int is_dense, float alpha, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_combine_add({index, value, k, wide != 0, is_dense != 0}, alpha, numel, dense,
                            max_blocks, nullptr);
}

// --- Kernels of the emulator's own test: they use what it must get right or refuse. ---
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
