// Every kernel of this library, so that all of them can be loaded before the first is launched.
//
// CUDA loads a kernel when it is first asked for (lazy loading), which may wait for the context's
// work, and is not allowed while a graph is being captured. Which kernels a call launches depends
// on the sizes: the first tensor of another size class would load behind a busy stream, or within a
// capture that had been tried out with a smaller model.
//
// GCEXT_LAUNCH (common.cuh) names its kernel here, when the library is loaded and whether or not it
// is ever launched: no list to keep.
#pragma once

#include <cstddef>
#include <vector>

#include "launch.h"

namespace gcext {

struct Kernel {
  const void* function;
  const char* signature;  // the compiler's text, which holds its name
};

inline std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

template <auto kernel>
struct Registered {
  static bool add() {
    kernels().push_back({reinterpret_cast<const void*>(kernel), __PRETTY_FUNCTION__});
    return true;
  }
  static const bool there;
};
template <auto kernel>
const bool Registered<kernel>::there = add();

// An odr-use: it makes the compiler emit the definition above, whose initializer is then run as the
// library is loaded.
#define GCEXT_REGISTER(kernel) static_cast<void>(&::gcext::Registered<kernel>::there)

// Loads all kernels on the current device, in whose context they then stay; returns how many. One
// that does not load is passed over: its launch reports it. This synchronizes nothing of the
// caller's, and is allowed while a graph is being captured.
inline size_t load_kernels() {
#ifndef GCEXT_CUEMU
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  for (const Kernel& kernel : kernels()) {
    cudaFuncAttributes attributes;
    if (cudaFuncGetAttributes(&attributes, kernel.function) != cudaSuccess) cudaGetLastError();
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
#endif
  return kernels().size();
}

}  // namespace gcext
