// Random numbers by counter: no state, so any order of work draws the same ones.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace gcext {

// SplitMix64's step and finaliser (Steele, Lea & Flood 2014). Keyed: mixed(mixed(seed) ^
// mixed(counter)).
GCEXT_HD inline uint64_t mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace gcext
