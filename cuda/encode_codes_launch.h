// The launcher of encode_codes.
#pragma once

#include "../csrc/encode_codes.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kEncodeBlocks = 1024;

// The codes of csrc/encode_codes.h; n > 0, and 0 < bucket <= n. Where info has a status source.out
// is a copy of source.memory (in place: untouched), so a caller who swaps the two has lost nothing,
// and scales and bits are anything.
struct EncodeLaunch {
  Source source;  // a = 1
  int64_t n, bucket;
  CodeTable table;
  GridRule rule;
  bool fit;
  float* scales;
  uint8_t* bits;  // 2-byte aligned
  int64_t* info;
  void* scratch;       // encode_scratch_bytes(table, n, bucket), 8-byte aligned
  int64_t max_blocks;  // at most kEncodeBlocks; the result does not depend on it
};
int64_t encode_scratch_bytes(CodeTable table, int64_t n, int64_t bucket);
cudaError_t launch_encode_codes(const EncodeLaunch& args, cudaStream_t stream);

}  // namespace gcext
