// For bodies of one instruction set: writes that leave the cache to others.
#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace gcext::GCEXT_ISA {
namespace {

// Copies, past the cache where the processor allows it; others see it when the caller's part of
// parallel_parts has ended.
void bypass(const void* from, size_t bytes, void* to) {
  const auto* source = static_cast<const uint8_t*>(from);
  auto* target = static_cast<uint8_t*>(to);
#if defined(__AVX2__)
  const size_t before = -reinterpret_cast<uintptr_t>(target) % kNative;
  if (before <= bytes) {
    std::memcpy(target, source, before);
    source += before, target += before, bytes -= before;
    for (; bytes >= kNative; source += kNative, target += kNative, bytes -= kNative) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_loadu_si512(source));
#else
      _mm256_stream_si256(reinterpret_cast<__m256i*>(target),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
#endif
    }
  }
#endif
  std::memcpy(target, source, bytes);
}

}  // namespace
}  // namespace gcext::GCEXT_ISA
