// Random choices of the fuzzer: the same from the same seed, everywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace gcext::fuzz {

using Bytes = std::vector<uint8_t>;

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  // In [0, n), n > 0.
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  // In [low, high].
  int64_t within(int64_t low, int64_t high) { return low + below(high - low + 1); }
  // True once in n times.
  bool once_in(int64_t n) { return below(n) == 0; }

  template <class T, size_t n>
  T of(const T (&choices)[n]) {
    return choices[below(static_cast<int64_t>(n))];
  }
  template <class T>
  const T& of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(below(static_cast<int64_t>(choices.size())))];
  }

  // Any bits of a float32, those at the edges of a rule often.
  uint32_t float_bits() {
    constexpr uint32_t kEdges[] = {0,          1,          0x007fffff, 0x00800000, 0x3f800000,
                                   0x3f000000, 0x40000000, 0x40000001, 0x6f000000, 0x6f000001,
                                   0x79800000, 0x79800001, 0x7f7fffff, 0x7f800000, 0x7f800001,
                                   0x7fc00000, 0x7f000000};
    const uint32_t sign = once_in(3) ? 0x80000000u : 0;
    return once_in(3) ? static_cast<uint32_t>(next()) : of(kEdges) | sign;
  }
  // A finite one; of moderate size unless `wild`.
  float finite(bool wild) {
    if (!wild) return static_cast<float>(within(-1000, 1000)) / 64;
    uint32_t word = float_bits();
    if ((word & 0x7f800000) == 0x7f800000) word ^= 0x40000000;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }

 private:
  uint64_t state_;
};

// Fails the run: an oracle was contradicted.
[[noreturn]] void broken(const char* what);

}  // namespace gcext::fuzz
