// combine under the emulator.
#include "../../cuda/combine.cu"

#include "emu.h"

EXPORT void emu_combine(int64_t m, const void* const* index, const float* const* value,
                        const int64_t* k, const int* wide, const int* dense, const double* weight,
                        int64_t numel, int64_t max_blocks, float* out) {
  const gcext::KernelFpEnv env;
  std::vector<gcext::WeightedPacket> packets(m), scratch(m);
  for (int64_t i = 0; i < m; ++i) {
    packets[i].packet = {index[i], value[i], k[i], wide[i] != 0, dense[i] != 0};
    packets[i].weight = weight[i];
  }
  gcext::launch_combine({packets.data(), m, numel, out, scratch.data(), max_blocks}, nullptr);
}

EXPORT void emu_combine_add(float* dense, int64_t numel, const void* index, const float* value,
                            int64_t k, int wide, int is_dense, float alpha, const int64_t* info,
                            int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_combine_add(
      {{index, value, k, wide != 0, is_dense != 0}, alpha, numel, dense, info, max_blocks},
      nullptr);
}
