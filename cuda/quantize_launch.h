// The launchers of quantize.
#pragma once

#include "../csrc/quantize.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kQuantizeBlocks = 1024;
constexpr int64_t kDecodeBlocks = 65536;

// The sign code of csrc/quantize.h; n > 0. Where info has a status source.out is a copy of
// source.memory (in place: untouched), so a caller who swaps the two has lost nothing, and bits are
// anything.
struct SignLaunch {
  Source source;  // a = 1
  int64_t n;
  uint8_t* bits;  // (n+7)/8
  int64_t* info;
  int64_t* next;       // what is sent of source.out, which then is the sum; or nullptr
  void* scratch;       // sign_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;  // at most kQuantizeBlocks; the result does not depend on it
};
int64_t sign_scratch_bytes();
cudaError_t launch_sign(const SignLaunch& args, cudaStream_t stream);

// The levels of csrc/quantize.h; n > 0, and 0 < bucket <= n. Capacity for n pairs: their number is
// info[kInfoCount]. Where info has a status, as above: no pairs.
struct LevelsLaunch {
  Source source;  // a = 1
  int64_t n, bucket;
  Norm norm;
  bool fit;
  LevelRule rule;
  float* norms;  // one a bucket
  void* at;      // int64 if `wide`, else int32
  bool wide;
  int16_t* level;
  int64_t* info;
  void* scratch;       // levels_scratch_bytes(n, bucket), 8-byte aligned
  int64_t max_blocks;  // at most kQuantizeBlocks; the result does not depend on it
};
int64_t levels_scratch_bytes(int64_t n, int64_t bucket);
cudaError_t launch_levels(const LevelsLaunch& args, cudaStream_t stream);

// The values of n levels: norm * level / steps, in the order given.
struct LevelValues {
  const float* norms;
  int64_t buckets;  // norms there are
  int64_t bucket;   // elements that share one; 0 where one serves all
  const void* at;   // int64 if `wide`, else int32
  bool wide;
  const int16_t* level;
  int64_t n;
  int32_t steps;
  float* value;
};
cudaError_t launch_level_values(const LevelValues& args, int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
