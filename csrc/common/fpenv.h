// Floating-point environment that every kernel computes in, whatever the caller set: denormals
// kept, round to nearest. The bytes of a packet must not depend on torch.set_flush_denormal or on
// another library's flags.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace gcext {

// Holds the calling thread in that environment for its lifetime. Threads have their own: every
// parallel body needs one.
class KernelFpEnv {
 public:
  KernelFpEnv(const KernelFpEnv&) = delete;
  KernelFpEnv& operator=(const KernelFpEnv&) = delete;

#if defined(__x86_64__)
  KernelFpEnv() : saved_(_mm_getcsr()) {
    _mm_setcsr(0x1f80);
  }  // all exceptions masked, nothing flushed, nearest
  ~KernelFpEnv() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  KernelFpEnv() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t{0}));
  }
  ~KernelFpEnv() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#else
  KernelFpEnv() = default;
#endif
};

}  // namespace gcext
