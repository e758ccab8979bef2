// dct under the emulator.
#include "../../cuda/dct.cu"

#include "emu.h"

EXPORT int64_t emu_dct_select_scratch_bytes(int64_t rows, int64_t cols, int64_t block, int64_t k) {
  return gcext::dct_select_scratch_bytes({rows, cols, block}, k);
}
EXPORT int64_t emu_dct_values_scratch_bytes() { return gcext::dct_values_scratch_bytes(); }

// The most coefficients that are chosen in all.
EXPORT int64_t emu_dct_capacity(int64_t rows, int64_t cols, int64_t block, int64_t k) {
  const gcext::DctGrid grid(rows, cols, block);
  return grid.blocks() * (k < grid.largest() ? k : grid.largest());
}

EXPORT void emu_dct_select(const float* tensor, const float* memory, float* out, float decay,
                           int64_t rows, int64_t cols, int64_t block, int64_t k, int ternary,
                           void* index, int wide, float* value, int64_t* info, void* scratch,
                           int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  const gcext::DctGrid grid(rows, cols, block);
  const gcext::Source source{tensor, out != nullptr && memory == nullptr ? out : memory, out, 1.0f,
                             decay};
  gcext::launch_dct_select({source, rows * cols, grid, k < grid.largest() ? k : grid.largest(),
                            ternary != 0, index, wide != 0, value, info, scratch, max_blocks},
                           nullptr);
}

EXPORT void emu_dct_values(const void* index, int wide, const float* value, int64_t k, int64_t rows,
                           int64_t cols, int64_t block, float* out, void* scratch,
                           int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_dct_values(
      {{rows, cols, block}, {index, value, k, wide != 0, false}, out, scratch, max_blocks},
      nullptr);
}
