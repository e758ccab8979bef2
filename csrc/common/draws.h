// For bodies of one instruction set: what elements draw, as draw_one of scalar.h has it.
#pragma once

#include <cstdint>
#include <cstring>

#include "scalar.h"

namespace gcext::GCEXT_ISA {
namespace {

constexpr int64_t kBatch = 256;  // elements whose draws are made at a time

// The draws of the elements from `index` on, kBatch of them and one.
struct DrawnRun {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the lower half comes first");
  uint64_t pair[kBatch / 2 + 1];
  int64_t odd;

  void draw(uint64_t key, int64_t index) {
    const uint64_t first = draw_state(key, static_cast<uint64_t>(index) >> 1);
    for (uint64_t i = 0; i < kBatch / 2; ++i) pair[i] = mixed(draw_state(first, i));
    pair[kBatch / 2] = mixed(draw_state(first, kBatch / 2));
    odd = index & 1;
  }
  // Unaligned.
  const char* at(int64_t i) const {
    return reinterpret_cast<const char*>(pair) + static_cast<size_t>(odd + i) * sizeof(uint32_t);
  }
  uint32_t one(int64_t i) const {
    uint32_t u;
    std::memcpy(&u, at(i), sizeof u);
    return u;
  }
};

}  // namespace
}  // namespace gcext::GCEXT_ISA
