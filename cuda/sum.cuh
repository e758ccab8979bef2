// The sum that quantize, encode_codes and dct encode, computed anew in each of their kernels.
#pragma once

#include "common.cuh"

namespace gcext {

__device__ inline float sum_at(const Source& s, int64_t i) {
  return s.memory == nullptr ? s.tensor[i] : s.tensor[i] + s.b * s.memory[i];
}

// Notes why the sum of element i is not finite.
__device__ inline void note(const Source& s, int64_t i, FirstNonFinite* first) {
  const uint64_t at = static_cast<uint64_t>(i);
  atomic_min(&first->sum, at);
  if (key_of(s.tensor[i]) >= kInfKey) atomic_min(&first->tensor, at);
  if (s.memory != nullptr && key_of(s.memory[i]) >= kInfKey) atomic_min(&first->memory, at);
}

}  // namespace gcext
