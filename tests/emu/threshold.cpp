// threshold under the emulator.
#include "../../cuda/threshold.cu"

#include "emu.h"

EXPORT int64_t emu_threshold(const float* tensor, const float* memory, float* out, float decay,
                             int64_t n, const int32_t* limit, int64_t scale, void* index, int wide,
                             float* value, int64_t* info, const int64_t* sent, int64_t* next,
                             void* scratch, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  if (scratch == nullptr) return gcext::threshold_scratch_bytes();
  const float* from = out != nullptr && memory == nullptr ? out : memory;
  return gcext::launch_threshold({{tensor, from, out, 1.0f, decay, sent},
                                  n,
                                  limit,
                                  static_cast<uint32_t>(scale),
                                  index,
                                  wide != 0,
                                  value,
                                  info,
                                  next,
                                  scratch,
                                  max_blocks},
                                 nullptr);
}
