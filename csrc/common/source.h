// What the kernels that compress a*tensor + b*memory read, and what they report.
#pragma once

#include <cstdint>

namespace gcext {

struct Source {
  const float* tensor;
  const float* memory;  // nullptr: acc = a*tensor
  float* out;           // nullptr: acc is not stored
  float a, b;
};

// The fields of an operator's `info`, int64[4].
enum InfoField { kInfoCount, kInfoStatus, kInfoWhere, kInfoMean, kInfoSize };

enum SelectStatus : int64_t {
  kSelectOk = 0,
  kSelectTensor = 1,    // tensor is not finite at `where`; nothing was written
  kSelectMemory = 2,    // memory was not finite at `where`
  kSelectOverflow = 3,  // both were finite, their sum at `where` is not
  kSelectNoMemory = 4,  // out of memory for the candidates
  // 5 to 7 are set in Python, gcext/_native/status.py
  kSketchOverflow = 8,    // a sum of the sketch is not finite in float32
  kSelectTransform = 16,  // finite, but too large to be transformed and back
};

}  // namespace gcext
