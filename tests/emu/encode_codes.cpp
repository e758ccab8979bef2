// encode_codes under the emulator.
#include "../../cuda/encode_codes.cu"

#include "emu.h"

EXPORT int64_t emu_encode_scratch_bytes(int table, int64_t n, int64_t bucket) {
  return gcext::encode_scratch_bytes(static_cast<gcext::CodeTable>(table), n, bucket);
}

EXPORT void emu_encode_codes(const float* tensor, const float* memory, float* out, float decay,
                             int64_t n, int table, int width, int64_t bucket, int random, int fit,
                             int64_t seed, float* scales, uint8_t* bits, int64_t* info,
                             void* scratch, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  const float* held = out != nullptr && memory == nullptr ? out : memory;
  gcext::launch_encode_codes({{tensor, held, out, 1.0f, decay},
                              n,
                              bucket,
                              static_cast<gcext::CodeTable>(table),
                              {width, random != 0, gcext::mixed(static_cast<uint64_t>(seed))},
                              fit != 0,
                              scales,
                              bits,
                              info,
                              scratch,
                              max_blocks},
                             nullptr);
}
