// The CPU operators by name, as csrc/ registers them, and tensors for them.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "random.h"
#include "torch_stub/stub.h"

namespace gcext::fuzz {

using torch::headeronly::ScalarType;
using torch::stable::find_operator;
using torch::stable::Refused;
using torch::stable::Tensor;
using torch::stable::threads;

using Tensors = std::vector<Tensor>;
using Optional = std::optional<Tensor>;
using Numbers = std::vector<int64_t>;
using Doubles = std::vector<double>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;

template <class T>
constexpr ScalarType type_of() {
  if constexpr (std::is_same_v<T, float>) return ScalarType::Float;
  if constexpr (std::is_same_v<T, double>) return ScalarType::Double;
  if constexpr (std::is_same_v<T, int16_t>) return ScalarType::Short;
  if constexpr (std::is_same_v<T, int32_t>) return ScalarType::Int;
  if constexpr (std::is_same_v<T, int64_t>) return ScalarType::Long;
  return ScalarType::Byte;
}

template <class T>
Tensor tensor_of(const std::vector<T>& values) {
  Tensor made = torch::stable::empty({static_cast<int64_t>(values.size())}, type_of<T>());
  if (!values.empty())
    std::memcpy(made.mutable_data_ptr(), values.data(), sizeof(T) * values.size());
  return made;
}

// As the operators are declared in csrc/.
using Combine = Tensor(const Tensors&, const Tensors&, const Doubles&, int64_t, const Doubles&,
                       const std::optional<Tensors>&, const Numbers&, const Numbers&,
                       const Numbers&);
using Gram = Tensor(const Tensors&, const Tensors&, const Doubles&, int64_t,
                    const std::optional<Tensors>&, const Numbers&, const Numbers&, const Numbers&);
using TrimmedMean = Tensor(const Tensors&, const Tensors&, int64_t, int64_t, const Doubles&,
                           const std::optional<Tensors>&, const Numbers&, const Numbers&,
                           const Numbers&);
using Vote = Tensor(const Tensors&, const Tensors&, const Tensors&, double, int64_t);
using AddMany = void(const Tensors&, const Tensors&, const Tensors&, double);
using Project = Tensor(Tensor, int64_t, int64_t, const Numbers&, const Numbers&);
using UnpackSigns = Tensor(const Tensor&, int64_t, double, const Optional&, int64_t);
using LevelValues = Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, int64_t);
using PowerValues = Tensor(const Tensor&, double);
using CodeValues = Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t);
using DctValues = Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t);
using SketchQuery = Tensor(const Tensor&, const Optional&, int64_t, int64_t, int64_t, int64_t);

}  // namespace gcext::fuzz
