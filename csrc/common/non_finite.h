// What the CPU kernels report of a sum that is not finite.
#pragma once

#include <cmath>

#include "source.h"

namespace gcext {

// Reports why the first sum that is not finite, of these n elements, is not.
inline void report_non_finite(const Source& source, int64_t n, int64_t* info) {
  const auto first = [&](const auto& x) {
    int64_t i = 0;
    while (i < n && std::isfinite(x(i))) ++i;
    return i;
  };
  info[kInfoStatus] = kSelectTensor;
  info[kInfoWhere] = first([&](int64_t i) { return source.tensor[i]; });
  if (info[kInfoWhere] < n) return;
  info[kInfoStatus] = kSelectMemory;
  info[kInfoWhere] = first([&](int64_t i) { return source.memory[i]; });
  if (info[kInfoWhere] < n) return;
  info[kInfoStatus] = kSelectOverflow;
  info[kInfoWhere] =
      first([&](int64_t i) { return source.tensor[i] + source.b * source.memory[i]; });
}

}  // namespace gcext
