// codes under the emulator.
#include "../../cuda/codes.cu"

#include "emu.h"

EXPORT void emu_code_values(const uint8_t* bits, const float* scales, int64_t n, int table,
                            int width, int64_t bucket, float* value, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_code_values(
      {bits, scales, n, static_cast<gcext::CodeTable>(table), width, bucket, value}, max_blocks,
      nullptr);
}
