// The launchers of sketch.
#pragma once

#include "../csrc/sketch.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kSketchBlocks = 4096;

// The count sketch of csrc/sketch.h; n > 0. Where info has a status, table is anything.
struct SketchLaunch {
  const float* value;
  int64_t n;
  SketchElements elements;
  SketchShape shape;
  float* table;  // shape.cells()
  int64_t* info;
  void* scratch;       // sketch_scratch_bytes(shape), 8-byte aligned
  int64_t max_blocks;  // the result does not depend on it
};
int64_t sketch_scratch_bytes(const SketchShape& shape);
cudaError_t launch_sketch(const SketchLaunch& args, cudaStream_t stream);

// The estimates of n elements.
struct SketchQuery {
  const float* table;
  SketchElements elements;
  SketchShape shape;
  int64_t n;
  float* estimate;
};
cudaError_t launch_sketch_query(const SketchQuery& args, int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
