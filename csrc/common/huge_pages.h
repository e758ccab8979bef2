// Fewer page faults for what is about to be written for the first time.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace gcext {

// For a large output that is about to be written for the first time: a fault for each 4 KiB of it
// costs more than the writing. Advice only; nothing happens where it is not taken.
inline void advise_huge_pages(void* first, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(first),
                  end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t from = (begin + kHuge - 1) & ~(kHuge - 1), to = end & ~(kHuge - 1);
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  static_cast<void>(first), static_cast<void>(bytes);
#endif
}

}  // namespace gcext
