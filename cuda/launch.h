// What every launcher needs: raw device pointers and a stream, no torch header
// and no kernel, so that <name>_ops.cpp, nvcc and the emulator of tests/emu read the same
// declarations, those of <name>_launch.h.
//
// Every launcher only enqueues on the stream: it neither synchronises nor allocates. It returns the
// first error of a launch. None of this has run on a GPU yet: the kernels compile for every
// architecture in GCEXT_CUDA_ARCHS and are byte-identical with the CPU under the emulator, which
// does not model a GPU's memory or speed.
#pragma once

#ifdef GCEXT_CUEMU
#include "cuemu.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstdint>

#include "../csrc/common/source.h"

// Before a launcher that takes no struct: the emulator's tests call it by its name.
#ifdef GCEXT_CUEMU
#define GCEXT_LAUNCHER extern "C" __attribute__((visibility("default")))
#else
#define GCEXT_LAUNCHER
#endif
