// The launcher of codes.
#pragma once

#include "../csrc/codes.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kCodesBlocks = 65536;

// The fields of csrc/codes.h; value gets n float32. Reads the (n*width + 7) / 8 bytes of bits
// alone, at any address, and what the buckets of n elements have of scales.
struct CodeValues {
  const uint8_t* bits;
  const float* scales;
  int64_t n;
  CodeTable table;
  int width;
  int64_t bucket;
  float* value;
};
cudaError_t launch_code_values(const CodeValues& args, int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
