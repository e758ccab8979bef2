// Reading and writing planes of bits (csrc/bits.h) on the device: for rice.
//
//   bit    0 .. 31   32 .. 63   64 .. 95      bit i of a plane is bit (i & 31) of word (i >> 5):
//   word      0         1          2          little-endian words are the bytes of csrc/bits.h
#pragma once

#include "common.cuh"

namespace gcext {

// Words [0, words) of memory as a stream of bits; elsewhere there are zeros, so that whatever
// lengths a hostile message claims, nothing outside is read.
struct BitStream {
  const uint32_t* word;
  int64_t words;

  __device__ uint64_t at(int64_t i) const {
    return static_cast<uint64_t>(i) < static_cast<uint64_t>(words) ? word[i] : 0;
  }

  // `count` <= 63 bits from bit `from` on.
  __device__ uint64_t read(int64_t from, int count) const {
    const int64_t i = from >> 5;
    const int shift = static_cast<int>(from & 31), end = shift + count;
    uint64_t x = at(i);
    if (end > 32) x |= at(i + 1) << 32;
    x >>= shift;
    if (end > 64) x |= at(i + 2) << (64 - shift);
    return x & ((uint64_t{1} << count) - 1);
  }
};

// Bits [from, from + 32) of the plane of n values of b > 0 bits; zeros before and after the plane.
template <class Value>
__device__ inline uint32_t plane_word(const Value* value, int64_t n, int b, int64_t from) {
  uint32_t word = 0;
  for (int64_t i = from > 0 ? from / b : 0; i < n && i * b < from + 32; ++i) {
    const int64_t shift = i * b - from;
    word |= static_cast<uint32_t>(shift >= 0 ? value[i] << shift : value[i] >> -shift);
  }
  return word;
}

}  // namespace gcext
