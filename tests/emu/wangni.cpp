// wangni under the emulator.
#include "../../cuda/wangni.cu"

#include "emu.h"

EXPORT int64_t emu_wangni(const float* tensor, const float* memory, float* out, float decay,
                          int64_t n, double budget, uint64_t seed, void* index, void* at, int wide,
                          float* value, float* sent, int64_t* info, int64_t* drawn, void* scratch,
                          int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  if (scratch == nullptr) return gcext::wangni_scratch_bytes();
  const float* from = out != nullptr && memory == nullptr ? out : memory;
  return gcext::launch_wangni({{tensor, from, out, 1.0f, decay},
                               n,
                               {budget, gcext::mixed(seed)},
                               index,
                               at,
                               wide != 0,
                               value,
                               sent,
                               info,
                               drawn,
                               scratch,
                               max_blocks},
                              nullptr);
}
