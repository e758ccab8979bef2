// gram under the emulator.
#include "../../cuda/gram.cu"

#include "../../cuda/combine.cu"
#include "emu.h"

EXPORT int64_t emu_gram_scratch_bytes(int64_t m) { return gcext::gram_scratch_bytes(m); }

EXPORT void emu_gram(int64_t m, const void* const* index, const float* const* value,
                     const int64_t* k, const int* wide, const int* dense, const double* scale,
                     int64_t numel, int64_t max_blocks, double* out, void* scratch) {
  const gcext::KernelFpEnv env;
  std::vector<gcext::WeightedPacket> packets(m);
  for (int64_t i = 0; i < m; ++i)
    packets[i] = {{index[i], value[i], k[i], wide[i] != 0, dense[i] != 0}, scale[i]};
  gcext::launch_gram({packets.data(), m, numel, out, scratch, max_blocks}, nullptr);
}
