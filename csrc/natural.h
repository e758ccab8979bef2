// natural: natural compression of a sum (Horvath et al. 2019, arXiv:1905.10988), fused with error
// feedback.
//
//   acc = tensor + decay*memory                    float32, two roundings, no contraction
//   |acc_i| = 2^e (1 + f),  0 <= f < 1             of denormals too: e from -149 to 127
//   |power_i| = e + 150 + (u_i < f)                the sign that of acc_i; 0 where acc_i is 0
//   sent_i = sign * scale * 2^(|power_i| - 150)    float64, rounded once to float32
//   out_i = acc_i - sent_i                         one rounding
//
// u_i is uniform over the multiples of 2^-23 in [0, 1), drawn from (seed, i). f is such a multiple,
// so with scale = 1 the mean of sent_i over seeds is exactly acc_i, and that of (sent_i - acc_i)^2
// at most acc_i^2 / 8. 2^128 is no float32: where its product with the scale is none either, a
// power that would be 278 is 277, and there alone sent_i is less in the mean.
//
// out may be memory: then sums are validated before any is written, so that where one is not finite
// the memory is what it was. Another out is anything there; on CUDA, which reports it deferred,
// either is a copy of memory.
//
//   power  int16, one an element
//   info   int64[4], see select.h: n | status | where | 0
//
// Back: power_values gives scale * 2^(|power| - 150), float32, for any positive finite scale.
//
// Limits: 2^39 elements; 0 < scale <= 1. Math below is shared with the device.
#pragma once

#include "common/isa.h"
#include "common/scalar.h"
#include "common/source.h"

namespace gcext {

constexpr int32_t kPowers = 279;      // 0 and 2^-149 .. 2^128
constexpr int32_t kPowerOfOne = 150;  // 2^0

// The value of |power| < kPowers. Without a branch.
GCEXT_HD inline float power_value(float scale, int32_t power) {
  const int32_t minus = power >> 31, magnitude = (power ^ minus) - minus;
  const uint64_t bits = static_cast<uint64_t>(magnitude - kPowerOfOne + 1023) << 52;
  double exact;
  memcpy(&exact, &bits, sizeof exact);
  const uint32_t value = bits_of(static_cast<float>(scale * exact));
  return float_of((value & static_cast<uint32_t>(-magnitude >> 31)) |
                  (static_cast<uint32_t>(minus) & 0x80000000u));
}

// The greatest power whose value is finite.
inline int32_t most_power(float scale) {
  return key_of(power_value(scale, kPowers - 1)) < kInfKey ? kPowers - 1 : kPowers - 2;
}

// The power of a float, drawn by 32 bits. Without a branch. A denormal's mantissa as a float has
// its exponent and fraction where those of other floats are.
GCEXT_HD inline int32_t power_of(float x, uint32_t bits, int32_t most) {
  const int32_t key = static_cast<int32_t>(key_of(x)),
                minus = static_cast<int32_t>(bits_of(x)) >> 31;
  const int32_t shifted = static_cast<int32_t>(bits_of(static_cast<float>(key)));
  const int32_t denormal = (key - (1 << 23)) >> 31, other = -key >> 31;  // all ones or zeros
  const int32_t one = (key & ~denormal) | (shifted & denormal);
  const int32_t down = static_cast<int32_t>(bits >> 9) - (one & 0x7fffff);  // negative: up
  const int32_t power = ((one >> 23) + 23 - (149 & denormal) - (down >> 31)) & other;
  const int32_t within = power < most ? power : most;
  return (within ^ minus) - minus;
}

// The bodies compiled per instruction set.
struct NaturalTable {
  // Of elements index .. index + n - 1. scale: acc becomes acc - sent; 0: it stays.
  void (*draw)(float* acc, int64_t n, uint64_t key, uint64_t index, int32_t most, float scale,
               Ahead ahead, int16_t* power);
  // Whether all are powers.
  bool (*within)(const int16_t* power, int64_t n);
  void (*values)(const int16_t* power, int64_t n, float scale, float* value);
};

GCEXT_DECLARE_TABLE(NaturalTable, natural_table)

}  // namespace gcext
