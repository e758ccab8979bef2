// natural under the emulator.
#include "../../cuda/natural.cu"

#include "emu.h"

EXPORT int64_t emu_natural_scratch_bytes() { return gcext::natural_scratch_bytes(); }

EXPORT void emu_natural(const float* tensor, const float* memory, float* out, float decay,
                        int64_t n, float scale, int64_t seed, int16_t* power, int64_t* info,
                        void* scratch, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  const gcext::Source source{tensor, out != nullptr && memory == nullptr ? out : memory, out, 1.0f,
                             decay};
  gcext::launch_natural({source, n, scale, gcext::mixed(static_cast<uint64_t>(seed)), power, info,
                         scratch, max_blocks},
                        nullptr);
}

EXPORT void emu_power_values(const int16_t* power, int64_t n, float scale, float* value,
                             int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_power_values(power, n, scale, value, max_blocks, nullptr);
}
