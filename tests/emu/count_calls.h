// What count.h tells count.cpp. A thread is its number in its block.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuemu::hooks {

// at, bytes: where it is written which of the running thread's memory is the kernel's arguments.
void count_launch(const char* kernel, int64_t blocks, int64_t threads, void* stream,
                  const void* const* at, const size_t* bytes);
void count_launch_end();
void count_block(const char* threads, size_t bytes, const char* shared, size_t shared_bytes,
                 unsigned count);
void count_block_end();
void count_thread(unsigned thread, const void* frame);
void count_thread_end(unsigned thread);
void count_current(unsigned thread);
void count_no_thread();
void count_arrive(unsigned thread, bool barrier);
void count_leave(unsigned thread, bool barrier, unsigned mask);
void count_atomic(const void* at, size_t bytes, const void* code);
void count_atomic_end();

}  // namespace cuemu::hooks
