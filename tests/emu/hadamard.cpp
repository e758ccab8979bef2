// hadamard under the emulator.
#include "../../cuda/hadamard.cu"

#include "emu.h"

EXPORT void emu_hadamard(const float* from, float* to, int64_t n, int level, uint64_t seed,
                         int inverse, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_hadamard({from, to, n, level, gcext::mixed(seed), inverse != 0, max_blocks},
                         nullptr);
}
