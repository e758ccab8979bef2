// robust under the emulator.
#include "../../cuda/robust.cu"

#include "../../cuda/combine.cu"
#include "emu.h"

// Dense packets come first.
EXPORT void emu_trimmed_mean(int64_t m, const void* const* index, const float* const* value,
                             const int64_t* k, const int* wide, const int* dense, int64_t drop,
                             int64_t numel, int64_t max_blocks, float* out) {
  const gcext::KernelFpEnv env;
  std::vector<gcext::WeightedPacket> packets(m), scratch(m);
  int64_t first = 0;
  for (int64_t i = 0; i < m; ++i) {
    packets[i] = {{index[i], value[i], k[i], wide[i] != 0, dense[i] != 0}, 0};
    first += dense[i] != 0;
  }
  gcext::launch_trimmed_mean(
      {packets.data(), first, m, drop, numel, out, scratch.data(), max_blocks}, nullptr);
}
