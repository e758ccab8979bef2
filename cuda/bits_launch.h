// The launcher of bits: planes of signs of csrc/bits.h on the device.
#pragma once

#include "../csrc/bits.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kBitsBlocks = 65536;

// One for all values, or where `many` is not null one for each `run` of them, a multiple of 4.
struct SignScale {
  float one;
  const float* many;
  int64_t run;
};

// Reads the (n+7)/8 bytes of the plane alone, at any address.
cudaError_t launch_bits_unpack_signs(const uint8_t* plane, int64_t n, const SignScale& scale,
                                     float* value, int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
