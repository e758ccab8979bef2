// rice under the emulator.
#include "../../cuda/rice.cu"

#include "emu.h"

EXPORT int64_t emu_rice_scratch_bytes() { return gcext::rice_scratch_bytes(); }
EXPORT int64_t emu_pack_bound(int64_t k, int64_t numel) { return gcext::pack_bound(k, numel); }

EXPORT void emu_pack(const void* index, int wide, const float* value, int64_t k, int64_t numel,
                     const int64_t* info, uint8_t* out, void* scratch, int64_t max_blocks) {
  gcext::launch_pack({index, wide != 0, value, k, numel, info, out, scratch, max_blocks}, nullptr);
}

EXPORT void emu_unpack(const uint32_t* message, int64_t bytes, int64_t begin,
                       int64_t remainder_bytes, int64_t k, int64_t numel, uint32_t scale,
                       void* index, int wide, float* value, int64_t* wrong, void* scratch,
                       int64_t max_blocks) {
  gcext::launch_unpack({message, bytes, begin, remainder_bytes, k, numel, scale, index, wide != 0,
                        value, wrong, scratch, max_blocks},
                       nullptr);
}
