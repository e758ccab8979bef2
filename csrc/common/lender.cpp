// What gcext._wire, which does not know torch, works with (csrc/wire/lender.h): torch's threads,
// and the memory of pool.h. Python finds the functions by name and hands them over (gcext/_native).
#include "pool.h"

#define GCEXT_LENT __attribute__((visibility("default")))

extern "C" {
GCEXT_LENT int64_t gcext_threads();
GCEXT_LENT void gcext_run(int64_t parts, void (*body)(void*, int64_t), void* context);
GCEXT_LENT void* gcext_take(size_t bytes);
GCEXT_LENT void gcext_give(void* memory);
}

// 1 where a fork has left none but the caller.
int64_t gcext_threads() {
  return gcext::threads_were_lost() ? 1 : torch::stable::get_num_threads();
}

void gcext_run(int64_t parts, void (*body)(void*, int64_t), void* context) {
  gcext::parallel_parts(parts, [&](int64_t part) { body(context, part); });
}

void* gcext_take(size_t bytes) { return gcext::pool_take(bytes); }

void gcext_give(void* memory) { gcext::pool_give(memory); }
