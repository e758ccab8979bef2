// select_chunks under the emulator.
#include "../../cuda/select_chunks.cu"

#include "emu.h"

EXPORT int64_t emu_select_chunks(const float* tensor, const float* memory, float* out,
                                 const int64_t* chunks, float a, float b, int ternary, void* index,
                                 int wide, float* value, int64_t* info, void* scratch,
                                 int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  const gcext::Chunks given{chunks[0], chunks[1], chunks[2], chunks[3]};
  if (scratch == nullptr) return gcext::select_chunks_scratch_bytes(given);
  const bool in_place = out != nullptr && memory == nullptr;
  return gcext::launch_select_chunks({{tensor, in_place ? out : memory, out, a, b},
                                      given,
                                      in_place,
                                      ternary != 0,
                                      index,
                                      wide != 0,
                                      value,
                                      info,
                                      scratch,
                                      max_blocks},
                                     nullptr);
}
