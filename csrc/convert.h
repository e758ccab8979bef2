// convert: a tensor of another float type as float32, in one pass over memory that was in use
// before: fresh pages cost more than the conversion.
//
//   float64            to nearest, denormals kept whatever the caller flushes
//   float16, bfloat16  exactly
//
// Kernels that take 16-bit tensors as they are need none of this; common/widen.h.
#pragma once

#include "common/isa.h"
#include "common/source.h"

namespace gcext {

// The bodies compiled per instruction set.
struct ConvertTable {
  void (*narrow)(const double* from, int64_t n, float* to);
  void (*widen)(const Halves& from, int64_t begin, int64_t n, float* to);
};

GCEXT_DECLARE_TABLE(ConvertTable, convert_table)

}  // namespace gcext
