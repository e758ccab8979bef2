// The exact sum of float32 numbers, rounded once.
#pragma once

#include <cstdint>
#include <cstring>

namespace gcext::wire {

// A signed fixed-point number that holds every float32: bit 0 weighs 2^-149, the largest float32
// ends at bit 276, and the bits above take the carries of more than 2^40 additions.
class ExactSum {
 public:
  void add(float x, bool negative) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    const uint32_t exponent = word >> 23 & 0xff;
    const uint64_t mantissa = (word & 0x7fffff) | (exponent > 0 ? 0x800000u : 0);
    const uint32_t bit = exponent > 0 ? exponent - 1 : 0;
    const uint32_t limb = bit / 64, shift = bit % 64;
    const uint64_t piece[2] = {mantissa << shift, shift > 40 ? mantissa >> (64 - shift) : 0};
    negative ? subtract(piece, limb) : accumulate(piece, limb);
  }

  // To the nearest float32, ties to even; infinity where it overflows.
  float rounded() const {
    uint64_t limb[kLimbs];
    std::memcpy(limb, limb_, sizeof limb);
    const bool negative = limb[kLimbs - 1] >> 63 != 0;
    if (negative) {
      uint64_t carry = 1;
      for (uint64_t& x : limb) {
        x = ~x + carry;
        carry = carry && x == 0;
      }
    }
    int top = kLimbs - 1;
    while (top > 0 && limb[top] == 0) --top;
    uint32_t word = static_cast<uint32_t>(limb[0]);  // below 2^24 the number is its own encoding
    if (top > 0 || limb[0] >> 24 != 0) {
      const int high = 64 * top + 63 - __builtin_clzll(limb[top]);
      const int shift = high - 23;
      const auto bit = [&](int i) { return limb[i / 64] >> (i % 64) & 1; };
      uint32_t mantissa = 0;
      for (int i = 23; i >= 0; --i)
        mantissa = mantissa << 1 | static_cast<uint32_t>(bit(shift + i));
      bool below = false;  // anything under the rounding bit
      for (int i = 0; i < shift - 1 && !below; ++i) below = bit(i) != 0;
      const uint32_t up = bit(shift - 1) != 0 && (below || (mantissa & 1) != 0) ? 1 : 0;
      // The implicit bit counts one into the exponent field, and so does a carry of the rounding.
      word = shift > 253 ? 0x7f800000u : (static_cast<uint32_t>(shift) << 23) + mantissa + up;
    }
    if (negative) word |= 0x80000000u;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }

 private:
  static constexpr int kLimbs = 5;

  void accumulate(const uint64_t* piece, uint32_t limb) {
    unsigned carry = 0;
    for (uint32_t i = limb; i < kLimbs && (i < limb + 2 || carry); ++i) {
      const uint64_t add = i < limb + 2 ? piece[i - limb] : 0;
      const uint64_t sum = limb_[i] + add, total = sum + carry;
      carry = (sum < add) | (total < sum);
      limb_[i] = total;
    }
  }

  void subtract(const uint64_t* piece, uint32_t limb) {
    unsigned borrow = 0;
    for (uint32_t i = limb; i < kLimbs && (i < limb + 2 || borrow); ++i) {
      const uint64_t take = i < limb + 2 ? piece[i - limb] : 0;
      const uint64_t rest = limb_[i] - take, total = rest - borrow;
      borrow = (limb_[i] < take) | (rest < borrow);
      limb_[i] = total;
    }
  }

  uint64_t limb_[kLimbs] = {};
};

}  // namespace gcext::wire
