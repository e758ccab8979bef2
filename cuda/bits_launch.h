// The launcher of bits: planes of signs of csrc/bits.h on the device.
#pragma once

#include "../csrc/bits.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kBitsBlocks = 65536;

// Reads the (n+7)/8 bytes of the plane alone, at any address. The scale of all values, or where
// `scales` is not null one of them for each `run` values, a multiple of 4.
GCEXT_LAUNCHER cudaError_t launch_unpack_signs(const uint8_t* plane, int64_t n, float scale,
                                               const float* scales, int64_t run, float* value,
                                               int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
