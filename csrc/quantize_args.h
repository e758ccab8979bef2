// What the operators sign and levels were given, checked: the same on both floors.
#pragma once

#include "operands.h"

namespace gcext {

inline Source quantize_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                            const std::optional<Tensor>& out, double decay) {
  GCEXT_CHECK(tensor.numel() < int64_t{1} << 39,
              "quantize: tensor must have less than 2^39 elements, got ", tensor.numel(),
              ". Encode in parts.");
  return operands("quantize", tensor, memory, out, 1, decay);
}

inline void check_levels(int64_t steps, int64_t bucket) {
  GCEXT_CHECK(steps >= 1 && steps < 1 << 15, "quantize: steps must be in [1, 2^15), got ", steps,
              ". Use fewer bits.");
  GCEXT_CHECK(bucket >= 0, "quantize: bucket must not be negative, got ", bucket,
              ". 0 is one for all.");
}

}  // namespace gcext
