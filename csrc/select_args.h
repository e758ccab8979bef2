// What the operators select and select_many were given, checked: the same on both floors.
#pragma once

#include "operands.h"

namespace gcext {

struct SelectArgs {
  Source source;
  int64_t n;
  bool in_place;  // out is also the memory
  bool wide;      // indices are int64
};

inline SelectArgs select_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                              const std::optional<Tensor>& out, int64_t k, double a, double b) {
  const int64_t n = tensor.numel();
  GCEXT_CHECK(k >= 0 && k <= n, "select: k must be in [0, numel], got ", k, " of ", n, ".");
  return {operands("select", tensor, memory, out, a, b), n, out.has_value() && !memory.has_value(),
          n > INT32_MAX};
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
