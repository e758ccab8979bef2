// The kernels of one base name on the CPU, behind plain C functions for ctypes: the very files that
// nvcc compiles, launch sequences included. Pointers are host memory; null stands for an absent
// tensor.
// `<name>.cpp` includes this once and becomes a library of its own (build.py), or <name>.cu does.
#pragma once

#include "../../csrc/common/fpenv.h"
#include "../../cuda/kernels.h"
#include "cuemu.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Runs lanes, warps and blocks from the last to the first: a result must not depend on it.
EXPORT void emu_reverse(int on) { cuemu::reversed = on != 0; }
// Launches run nothing: what the host enqueues is all that is asked for.
EXPORT void emu_dry(int on) { cuemu::dry = on != 0; }

// The kernels that are loaded beforehand.
EXPORT int64_t emu_kernels() { return static_cast<int64_t>(gcext::load_kernels()); }
EXPORT const char* emu_kernel(int64_t i) { return gcext::kernels()[i].signature; }
