// bits under the emulator.
#include "../../cuda/bits.cu"

#include "emu.h"

EXPORT void emu_bits_pack(const uint32_t* value, int64_t n, int b, uint32_t* plane,
                          int64_t max_blocks) {
  gcext::launch_bits_pack(value, n, b, plane, max_blocks, nullptr);
}

EXPORT void emu_bits_unpack(const uint32_t* plane, int64_t n, int b, uint32_t* value,
                            int64_t max_blocks) {
  gcext::launch_bits_unpack(plane, n, b, value, max_blocks, nullptr);
}

EXPORT void emu_bits_pack_signs(const float* value, int64_t n, uint32_t* plane,
                                int64_t max_blocks) {
  gcext::launch_bits_pack_signs(value, n, plane, max_blocks, nullptr);
}

EXPORT void emu_bits_unpack_signs(const uint8_t* plane, int64_t n, float scale, const float* scales,
                                  int64_t run, float* value, int64_t max_blocks) {
  gcext::launch_bits_unpack_signs(plane, n, {scale, scales, run}, value, max_blocks, nullptr);
}
