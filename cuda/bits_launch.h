// The launchers of bits: planes of csrc/bits.h on the device.
#pragma once

#include "../csrc/bits.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kBitsBlocks = 65536;

// Whole 32-bit words that hold a plane of n values of b bits: what a packing launcher writes, the
// bits after the plane as zeros, and what an unpacking one reads.
inline int64_t plane_words(int64_t n, int b) { return (plane_bytes(n, b) + 3) / 4; }

// One for all values, or where `many` is not null one for each `run` of them, a multiple of 4.
struct SignScale {
  float one;
  const float* many;
  int64_t run;
};

// `plane` is 4-byte aligned, but for launch_bits_unpack_signs, which reads its (n+7)/8 bytes alone;
// 0 <= b <= 32; the bits of a value above b are zero.
cudaError_t launch_bits_pack(const uint32_t* value, int64_t n, int b, uint32_t* plane,
                             int64_t max_blocks, cudaStream_t stream);
cudaError_t launch_bits_unpack(const uint32_t* plane, int64_t n, int b, uint32_t* value,
                               int64_t max_blocks, cudaStream_t stream);
cudaError_t launch_bits_pack_signs(const float* value, int64_t n, uint32_t* plane,
                                   int64_t max_blocks, cudaStream_t stream);
cudaError_t launch_bits_unpack_signs(const uint8_t* plane, int64_t n, const SignScale& scale,
                                     float* value, int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
