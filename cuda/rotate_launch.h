// The launchers of rotate.
#pragma once

#include "../csrc/rotate.h"
#include "launch.h"

namespace gcext {

// n values to all chunks' values, and to the squared norm of each chunk.
struct RotateLaunch {
  const float* values;
  RotateChunks chunks;
  uint64_t seed;
  float* rotated;
  double* norm;
  int64_t max_blocks;  // here and below the result does not depend on it
};

// The scale of each chunk. The status of info, where it has none, becomes kSelectRotated if a scale
// is not finite or `bad`, the index of a value that is not, is not negative.
struct RotateScaleLaunch {
  const float* rotated;
  const uint8_t* symbols;
  const double* norm;
  const int64_t* bad;
  RotateChunks chunks;
  float* scale;
  int64_t* info;
  int64_t max_blocks;
};

// Symbols back to n values, with the scales given; or first to the scales that fit `values` best.
struct RotateBackLaunch {
  const uint8_t* symbols;
  const float* scale;
  RotateChunks chunks;
  uint64_t seed;
  float* out;
  float* tail;          // the last chunk's size, where it has padding
  const float* values;  // null: the scales given
  float* fitted;        // else where they go
  int64_t max_blocks;
};

constexpr int64_t kRotateBlocks = 65536;

cudaError_t launch_rotate(const RotateLaunch& args, cudaStream_t stream);
cudaError_t launch_rotate_scale(const RotateScaleLaunch& args, cudaStream_t stream);
cudaError_t launch_rotate_back(const RotateBackLaunch& args, cudaStream_t stream);

}  // namespace gcext
