// The hooks of cuemu.h for the race check: race.cpp defines them.
#pragma once

namespace cuemu::hooks {
void launch_begin(const char* kernel, int64_t blocks, int64_t threads, cudaStream_t);
void launch_end();
void block_begin();
void block_end();
void thread_begin(Thread& thread);
void thread_end(Thread& thread);
void before_switch(Thread* to);
void arrive(Op op, unsigned mask);
void leave(Op op, unsigned mask);
void atomic_from(void* at, size_t size, const void* from);
// Inlined into the atomic, whose caller is the kernel.
__attribute__((always_inline)) CUEMU_PLAIN inline void atomic_begin(void* at, size_t size) {
  atomic_from(at, size, __builtin_return_address(0));
}
inline void atomic_end(void*, size_t) {}
void fence(bool block_scope);
}  // namespace cuemu::hooks
