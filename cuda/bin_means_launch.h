// The launcher of bin_means.
#pragma once

#include "../csrc/chunks/bin_means.h"
#include "launch.h"

namespace gcext {

// csrc/chunks/bin_means.h. How many values there are, up to `capacity`, and whether there is an
// error, info says; then nothing is written. Only whole bytes of packed that hold a code are.
struct BinMeansLaunch {
  const void* index;  // int64 if `wide`, else int32
  bool wide;
  const float* value;
  int64_t capacity;
  const int64_t* info;
  float* out;  // nullptr: nothing is kept
  int bits;
  double range;
  float* table;
  uint8_t* packed;
  void* scratch;       // bin_means_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;  // the result does not depend on it
};

constexpr int64_t kBinMeansBlocks = 1024;

int64_t bin_means_scratch_bytes(int64_t capacity, int bits);
cudaError_t launch_bin_means(const BinMeansLaunch& args, cudaStream_t stream);

}  // namespace gcext
