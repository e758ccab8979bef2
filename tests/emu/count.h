// The hooks of cuemu.h that count traffic: what a kernel's threads do goes to count.cpp, which is
// compiled without instrumentation. build.py's `counted` compiles a kernel file with these.
#pragma once

#include "count_calls.h"

namespace cuemu::hooks {

CUEMU_PLAIN inline bool is_barrier(Op op) {
  return op == Op::barrier || op == Op::count || op == Op::every || op == Op::some;
}

CUEMU_PLAIN inline void launch_begin(const char* kernel, int64_t blocks, int64_t count,
                                     cudaStream_t stream) {
  count_launch(kernel, blocks, count, stream, &arguments.at, &arguments.bytes);
}
CUEMU_PLAIN inline void launch_end() { count_launch_end(); }
CUEMU_PLAIN inline void block_begin() {
  count_block(reinterpret_cast<const char*>(threads.data()), threads.size() * sizeof(Thread),
              __start_cuemu_shared, static_cast<size_t>(__stop_cuemu_shared - __start_cuemu_shared),
              static_cast<unsigned>(threads.size()));
}
CUEMU_PLAIN inline void block_end() { count_block_end(); }
CUEMU_PLAIN inline void thread_begin(Thread& thread) {
  count_thread(thread.index.x, __builtin_frame_address(0));
}
CUEMU_PLAIN inline void thread_end(Thread& thread) { count_thread_end(thread.index.x); }
CUEMU_PLAIN inline void before_switch(Thread* to) {
  if (to == nullptr) {
    count_no_thread();
  } else {
    count_current(to->index.x);
  }
}
CUEMU_PLAIN inline void arrive(Op op, unsigned) { count_arrive(self->index.x, is_barrier(op)); }
CUEMU_PLAIN inline void leave(Op op, unsigned mask) {
  count_leave(self->index.x, is_barrier(op), mask);
}
// Inlined into the atomic, whose caller is the kernel.
__attribute__((always_inline)) CUEMU_PLAIN inline void atomic_begin(void* at, size_t bytes) {
  count_atomic(at, bytes, __builtin_return_address(0));
}
CUEMU_PLAIN inline void atomic_end(void*, size_t) { count_atomic_end(); }
CUEMU_PLAIN inline void fence(bool) {}

}  // namespace cuemu::hooks
