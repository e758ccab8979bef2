// adacomp under the emulator.
#include "../../cuda/adacomp.cu"

#include "emu.h"

EXPORT int64_t emu_adacomp(const float* tensor, const float* memory, float* out, float decay,
                           int64_t n, int64_t bin, void* index, int wide, float* value,
                           int64_t* info, void* scratch, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  if (scratch == nullptr) return gcext::adacomp_scratch_bytes(n, bin);
  const float* from = out != nullptr && memory == nullptr ? out : memory;
  return gcext::launch_adacomp({{tensor, from, out, 1.0f, decay},
                                n,
                                bin,
                                index,
                                wide != 0,
                                value,
                                info,
                                scratch,
                                max_blocks},
                               nullptr);
}
