// rotate under the emulator.
#include "../../cuda/rotate.cu"

#include "emu.h"

EXPORT void emu_rotate(const float* values, int64_t n, int64_t size, int64_t least, uint64_t seed,
                       float* rotated, double* norm, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_rotate({values, {n, size, least}, seed, rotated, norm, max_blocks}, nullptr);
}

EXPORT void emu_rotate_scale(const float* rotated, const uint8_t* symbols, const double* norm,
                             const int64_t* bad, int64_t n, int64_t size, int64_t least,
                             float* scale, int64_t* info, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_rotate_scale(
      {rotated, symbols, norm, bad, {n, size, least}, scale, info, max_blocks}, nullptr);
}

EXPORT void emu_rotate_back(const float* values, float* fitted, const uint8_t* symbols,
                            const float* scale, int64_t n, int64_t size, int64_t least,
                            uint64_t seed, float* out, float* tail, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_rotate_back(
      {symbols, scale, {n, size, least}, seed, out, tail, values, fitted, max_blocks}, nullptr);
}
