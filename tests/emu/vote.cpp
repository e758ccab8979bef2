// vote under the emulator.
#include "../../cuda/vote.cu"

#include "../../cuda/combine.cu"
#include "emu.h"

// The first `planes` are dense, their bits at index.
EXPORT void emu_vote(int64_t m, const void* const* index, const float* const* value,
                     const int64_t* k, const int* wide, const int* dense, int64_t planes,
                     float scale, int64_t numel, int64_t max_blocks, float* out) {
  std::vector<gcext::WeightedPacket> voters(m), scratch(m);
  for (int64_t i = 0; i < m; ++i)
    voters[i] = {{index[i], value[i], k[i], wide[i] != 0, dense[i] != 0}, 0};
  gcext::launch_vote({voters.data(), planes, m, numel, scale, out, scratch.data(), max_blocks},
                     nullptr);
}
