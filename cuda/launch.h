// What every launcher of this floor stands on: raw device pointers and a stream, no torch header
// and no kernel, so that <stem>_ops.cpp, nvcc and the emulator of tests/emu read the same
// declarations, those of <stem>_launch.h.
//
// Every launcher only enqueues on the stream: it neither synchronises nor allocates. It returns the
// first error of a launch. None of this has run on a GPU yet: the kernels compile for every
// architecture in GCEXT_CUDA_ARCHS and are byte-identical with the CPU under the emulator, which
// knows nothing of a GPU's memory model or speed.
#pragma once

#ifdef GCEXT_CUEMU
#include "cuemu.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstdint>

#include "../csrc/select.h"
