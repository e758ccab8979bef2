// The constants of dynamic8 (csrc/codes.h) in device memory.
#pragma once

#include "../csrc/codes.h"
#include "common.cuh"

namespace gcext {

// Made when the compiler runs: devices and the host have the same bits.
static __device__ const Dynamic8 kDynamic8OnDevice{};

}  // namespace gcext
