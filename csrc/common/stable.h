// The one place for what the LibTorch stable ABI makes ugly: includes, checks, allocation, parallel
// loops. Everything here works from torch 2.10 on (TORCH_TARGET_VERSION), whatever torch the build
// found.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <new>
#include <optional>
#include <vector>

#include "fork.h"
#include "fpenv.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace gcext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A message reads: op: rule, got value. Remedy. The Python API checks first and raises typed
// errors; these checks are for those who call torch.ops.gcext.* themselves.
#define GCEXT_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

// Registers the function `name` as the kernel of the operator gcext::name for a dispatch key (CPU,
// CUDA, ..); GCEXT_OPERATOR declares the operator's schema too. At namespace scope.
#define GCEXT_KERNEL(key, name) \
  STABLE_TORCH_LIBRARY_IMPL(gcext, key, m) { m.impl(#name, TORCH_BOX(&name)); }
#define GCEXT_OPERATOR(key, name, schema)                          \
  STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) { m.def(#name schema); } \
  GCEXT_KERNEL(key, name)

inline void check_dense(const Tensor& t, ScalarType dtype, const char* what) {
  GCEXT_CHECK(t.scalar_type() == dtype, what, ": wrong dtype. Convert the tensor first.");
  GCEXT_CHECK(t.is_contiguous(), what, ": must be contiguous. Call .contiguous() first.");
}

// By the C function that torch::stable::empty ends in: the dispatcher would look the operator up by
// name every time, which takes longer than the allocation. And its message, where there is no
// memory, would be its own source line; Python takes this one for a MemoryError.
template <size_t dims>
Tensor empty_like(const int64_t (&sizes)[dims], ScalarType dtype, int32_t type, int32_t index) {
  int64_t strides[dims], stride = 1;
  for (size_t i = dims; i-- > 0; stride *= sizes[i]) strides[i] = stride;
  AtenTensorHandle made = nullptr;
  const auto failed = aoti_torch_empty_strided(dims, sizes, strides, static_cast<int32_t>(dtype),
                                               type, index, &made);
  GCEXT_CHECK(failed == 0, "can't allocate memory for ", stride, " elements.");
  return Tensor(made);
}

inline Tensor empty(int64_t n, ScalarType dtype, const Tensor& like) {
  const auto device = like.device();
  return empty_like({n}, dtype, static_cast<int32_t>(device.type()), device.index());
}

inline Tensor empty(int64_t rows, int64_t cols, ScalarType dtype, const Tensor& like) {
  const auto device = like.device();
  return empty_like({rows, cols}, dtype, static_cast<int32_t>(device.type()), device.index());
}

// On the CPU.
template <size_t dims>
Tensor empty(const int64_t (&sizes)[dims], ScalarType dtype) {
  return empty_like(sizes, dtype, 0, 0);
}

// Runs body(part) for part in [0, parts) on torch's threads, each in the kernels' floating-point
// environment. An exception must not cross torch's C interface, which would replace its message: it
// is carried over by hand.
template <class Body>
void parallel_parts(int64_t parts, const Body& body) {
  std::exception_ptr error;
  std::atomic<bool> failed{false};
  const auto guarded = [&](int64_t begin, int64_t end) {
    const KernelFpEnv env;
    for (int64_t part = begin; part < end; ++part) {
      try {
        body(part);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
#if defined(__SSE2__)
    _mm_sfence();  // what was stored past the cache, for the threads that go on with it
#endif
  };
  if (parts == 1) {
    guarded(0, 1);
  } else {
    GCEXT_CHECK(!threads_were_lost(),
                "gcext: this process was forked after threads had been used, and a fork does not "
                "copy them: waiting for them would never end. Call torch.set_num_threads(1) before "
                "anything else here, or start processes with the method spawn.");
    threads_used = true;
    torch::stable::parallel_for(0, parts, 1, guarded);
  }
  if (failed) std::rethrow_exception(error);
}

// log2 of a size that must be a power of two within [2^least, 2^most].
inline int check_power_of_two(const char* what, int64_t size, int least, int most) {
  int level = least;
  while (level < most && int64_t{1} << level < size) ++level;
  GCEXT_CHECK(size == int64_t{1} << level, what, " must be a power of two in [2^", least, ", 2^",
              most, "], got ", size, ". Round it.");
  return level;
}

// How many contiguous parts to cut n elements into: one a thread, but none smaller than grain.
inline int64_t parts_for(int64_t n, int64_t grain) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min<int64_t>(threads, n / grain));
}

}  // namespace gcext
