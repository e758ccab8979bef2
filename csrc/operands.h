// What the operators that compress a*tensor + b*memory were given, checked: the same on both
// floors.
#pragma once

#include <string>

#include "select.h"
#include "stable.h"

namespace gcext {

// No memory beside an out: out is updated in place, and is the memory too.
inline Source operands(const char* op, const Tensor& tensor, const std::optional<Tensor>& memory,
                       const std::optional<Tensor>& out, double a, double b) {
  const std::string name(op);
  check_dense(tensor, ScalarType::Float, (name + ": tensor").c_str());
  for (const auto* each : {&memory, &out}) {
    if (!each->has_value()) continue;
    check_dense(**each, ScalarType::Float, (name + ": memory and out").c_str());
    GCEXT_CHECK((*each)->numel() == tensor.numel(), op, ": memory and out must have ",
                tensor.numel(), " elements like tensor, got ", (*each)->numel(), ".");
  }
  GCEXT_CHECK(out.has_value() || !memory.has_value(), op,
              ": memory needs out. Pass where the new one goes.");
  Source source{tensor.const_data_ptr<float>(), nullptr, nullptr, static_cast<float>(a),
                static_cast<float>(b)};
  if (out.has_value()) {
    source.out = out->mutable_data_ptr<float>();
    source.memory = memory.has_value() ? memory->const_data_ptr<float>() : source.out;
  }
  return source;
}

}  // namespace gcext
