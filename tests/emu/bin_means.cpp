// bin_means under the emulator.
#include "../../cuda/bin_means.cu"

#include "emu.h"

EXPORT int64_t emu_bin_means(const void* index, int wide, const float* value, int64_t capacity,
                             const int64_t* info, float* out, int bits, double range, float* table,
                             uint8_t* packed, void* scratch, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  if (scratch == nullptr) return gcext::bin_means_scratch_bytes(capacity, bits);
  return gcext::launch_bin_means({index, wide != 0, value, capacity, info, out, bits, range, table,
                                  packed, scratch, max_blocks},
                                 nullptr);
}
