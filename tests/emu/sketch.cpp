// sketch under the emulator.
#include "../../cuda/sketch.cu"

#include "emu.h"

namespace {

gcext::SketchShape shape_of(int64_t rows, int64_t cols, uint64_t seed) {
  return {rows, cols, gcext::mixed(seed)};
}

}  // namespace

EXPORT int64_t emu_sketch_scratch_bytes(int64_t rows, int64_t cols) {
  return gcext::sketch_scratch_bytes(shape_of(rows, cols, 0));
}

EXPORT void emu_sketch(const float* value, int64_t n, const void* index, int wide, int64_t rows,
                       int64_t cols, uint64_t seed, float* table, int64_t* info, void* scratch,
                       int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_sketch({value,
                        n,
                        {index, wide != 0, 0},
                        shape_of(rows, cols, seed),
                        table,
                        info,
                        scratch,
                        max_blocks},
                       nullptr);
}

EXPORT void emu_sketch_query(const float* table, const void* index, int wide, int64_t n,
                             int64_t rows, int64_t cols, uint64_t seed, float* estimate,
                             int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_sketch_query(
      {table, {index, wide != 0, 0}, shape_of(rows, cols, seed), n, estimate}, max_blocks, nullptr);
}
