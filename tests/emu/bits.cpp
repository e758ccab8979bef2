// bits under the emulator.
#include "../../cuda/bits.cu"

#include "emu.h"

EXPORT void emu_bits_unpack_signs(const uint8_t* plane, int64_t n, float scale, const float* scales,
                                  int64_t run, float* value, int64_t max_blocks) {
  gcext::launch_bits_unpack_signs(plane, n, {scale, scales, run}, value, max_blocks, nullptr);
}
