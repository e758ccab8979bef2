// What Python calls the codes of the format.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "error.h"

namespace gcext::wire {

// By code; those without a name are reserved.
constexpr std::array<const char*, 17> kMethodNames = {
    "",      "dense", "sparse", "ternary", "merged",  "group",  "random", "sign",   "levels",
    "polar", "codes", "powers", "sum",     "lowrank", "sketch", "dct",    "levels2"};
constexpr std::array<const char*, 4> kDtypeNames = {"float32", "float16", "bfloat16", "float64"};
constexpr std::array<const char*, 5> kTableNames = {"values", "uniform", "dynamic8", "float16",
                                                    "bfloat16"};

constexpr bool has_name(const char* name) { return name != nullptr && name[0] != '\0'; }

inline bool is_method(uint8_t code) {
  return code < kMethodNames.size() && has_name(kMethodNames[code]);
}

// The code of a name. Throws PackError for one that is not there.
template <size_t n>
int code_of(const std::array<const char*, n>& names, const std::string& name, const char* what) {
  std::string known;
  for (size_t code = 0; code < n; ++code) {
    if (!has_name(names[code])) continue;
    if (name == names[code]) return static_cast<int>(code);
    known += (known.empty() ? "" : ", ") + std::string(names[code]);
  }
  throw PackError(std::string("pack: ") + what + " must be one of " + known + ", got " + name +
                  ".");
}

}  // namespace gcext::wire
