// What the operators select and select_many were given, checked: the same on both floors.
#pragma once

#include "select.h"
#include "stable.h"

namespace gcext {

struct SelectArgs {
  Source source;
  int64_t n;
  bool in_place;  // out is also the memory
  bool wide;      // indices are int64
};

// No memory beside an out: out is updated in place.
inline SelectArgs select_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                              const std::optional<Tensor>& out, int64_t k, double a, double b) {
  check_dense(tensor, ScalarType::Float, "select: tensor");
  const int64_t n = tensor.numel();
  GCEXT_CHECK(k >= 0 && k <= n, "select: k must be in [0, numel], got ", k, " of ", n, ".");
  for (const auto* each : {&memory, &out}) {
    if (!each->has_value()) continue;
    check_dense(**each, ScalarType::Float, "select: memory and out");
    GCEXT_CHECK((*each)->numel() == n, "select: memory and out must have ", n,
                " elements like tensor, got ", (*each)->numel(), ".");
  }
  GCEXT_CHECK(out.has_value() || !memory.has_value(),
              "select: memory needs out. Pass where the new one goes.");
  SelectArgs args = {};
  args.n = n;
  args.in_place = out.has_value() && !memory.has_value();
  args.wide = n > INT32_MAX;
  args.source = {tensor.const_data_ptr<float>(), nullptr, nullptr, static_cast<float>(a),
                 static_cast<float>(b)};
  if (out.has_value()) {
    args.source.out = out->mutable_data_ptr<float>();
    args.source.memory = args.in_place ? args.source.out : memory->const_data_ptr<float>();
  }
  return args;
}

// Many: memory and out have an entry for every tensor, or none at all.
inline std::vector<SelectArgs> select_args(const std::vector<Tensor>& tensor,
                                           const std::vector<Tensor>& memory,
                                           const std::vector<Tensor>& out,
                                           const std::vector<int64_t>& k, double a, double b) {
  const size_t m = tensor.size();
  GCEXT_CHECK(m > 0 && k.size() == m && (memory.empty() || memory.size() == m) &&
                  (out.empty() || out.size() == m),
              "select_many: needs a k for every tensor, and a memory and an out or none, got ",
              k.size(), ", ", memory.size(), " and ", out.size(), " for ", m, ".");
  std::vector<SelectArgs> args;
  args.reserve(m);
  for (size_t i = 0; i < m; ++i) {
    const auto at = [&](const std::vector<Tensor>& from) {
      return from.empty() ? std::nullopt : std::optional<Tensor>(from[i]);
    };
    args.push_back(select_args(tensor[i], at(memory), at(out), k[i], a, b));
    GCEXT_CHECK(!args[i].wide, "select_many: a tensor must have less than 2^31 elements, got ",
                args[i].n, ". Select it alone.");
  }
  return args;
}

inline int64_t total(const std::vector<int64_t>& k) {
  int64_t sum = 0;
  for (int64_t each : k) sum += each;
  return sum;
}

}  // namespace gcext
