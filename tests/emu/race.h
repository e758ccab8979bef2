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
void atomic_begin(void* at, size_t size);
void atomic_end(void* at, size_t size);
void fence(bool block_scope);
}  // namespace cuemu::hooks
