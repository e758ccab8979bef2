// What host and device code share: bit patterns of floats and random numbers by counter.
#pragma once

#include <string.h>

#include <cstdint>

// Marks a function that CPU and CUDA code call.
#if defined(__CUDACC__)
#define GCEXT_HD __host__ __device__
#else
#define GCEXT_HD
#endif

namespace gcext {

GCEXT_HD inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

GCEXT_HD inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Of bfloat16 and float16, whatever their bits say.
GCEXT_HD inline float float_of_brain(uint16_t code) { return float_of(uint32_t{code} << 16); }

GCEXT_HD inline float float_of_half(uint16_t code) {
  const uint32_t sign = (code & 0x8000u) << 16, rest = code & 0x7fffu;
  // A subnormal half is its mantissa in units of 2^-24. No float32 denormal comes up on the way.
  const uint32_t tiny = bits_of(static_cast<float>(static_cast<int32_t>(rest)) * 0x1p-24f);
  const uint32_t normal = (rest << 13) + ((rest < 0x7c00u ? 112u : 224u) << 23);
  return float_of(sign | (rest < 0x400u ? tiny : normal));
}

// A magnitude's key, its bit pattern without the sign: keys order as magnitudes do, 0 is zero, and
// from kInfKey on the value is not finite.
constexpr uint32_t kInfKey = 0x7f800000u;

GCEXT_HD inline uint32_t key_of(uint32_t bits) { return bits & 0x7fffffffu; }
GCEXT_HD inline uint32_t key_of(float x) { return key_of(bits_of(x)); }

// The magnitude of a key with the sign of x.
GCEXT_HD inline float with_sign_of(uint32_t key, float x) {
  return float_of(key | (bits_of(x) & 0x80000000u));
}

// Sums of doubles go side by side over kLanes lanes, element e in lane e mod 8; the lanes are added
// in this order.
constexpr int kLanes = 8;

GCEXT_HD inline double add_lanes(const double lane[kLanes]) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// SplitMix64's step and finaliser (Steele, Lea & Flood 2014). Without a state, so any order of work
// draws the same numbers. Of several counters: mixed(mixed(seed) ^ mixed(counter)).
GCEXT_HD inline uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What elements draw: SplitMix64's stream from the state `key`, which is mixed(seed). Two elements
// share 64 bits of it, the even one the lower half.
GCEXT_HD inline uint64_t draw_state(uint64_t key, uint64_t pair) {
  return key + pair * 0x9e3779b97f4a7c15u;
}
GCEXT_HD inline uint64_t draw_pair(uint64_t key, uint64_t pair) {
  return mixed(draw_state(key, pair));
}
GCEXT_HD inline uint32_t half_of_pair(uint64_t pair, int64_t index) {
  return static_cast<uint32_t>(index & 1 ? pair >> 32 : pair);
}
GCEXT_HD inline uint32_t draw_one(uint64_t key, int64_t index) {
  return half_of_pair(draw_pair(key, static_cast<uint64_t>(index) >> 1), index);
}

}  // namespace gcext
