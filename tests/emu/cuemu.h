// CUDA on the CPU, for tests: kernels written for nvcc run unchanged, one fiber per CUDA thread,
// one block at a time, or several that take turns (cuemu::residents, cuemu::yield).
//
//   1. A block's fibers run warp by warp, lane by lane, each until it waits or ends.
//   2. A warp operation is carried out once every lane of its mask that still runs waits in it.
//   3. A barrier is carried out once every thread that still runs waits in it.
//   4. No thread can run and nothing can be carried out: a deadlock. Abort, naming block and
//   thread.
//
// Also refused: a mask without the calling lane, lanes of one mask in different operations, threads
// in different barriers. Shared memory is poisoned before every block. cuemu::reversed runs lanes,
// warps and blocks from the last to the first, so that a result which depends on the schedule shows
// as a difference between two runs.
//
// What it cannot show: races between two barriers that no order above reveals, the memory model of
// a GPU, speed. __shared__ is for plain functions only: GCC cannot place a template's
// statics in a named section. No dynamic shared memory, no cooperative groups; a launch runs at
// once, or when tests/fakegpu, which has streams, wants it.
//
// Hooks: compiled with -DCUEMU_HOOKS='"file.h"', the emulator calls the functions of that file,
// which are declared at "Hooks" below, and with -fsanitize=thread the kernels, and only they, call
// __tsan_read4 and the like, which that file may define too. Without the macro the hooks are empty.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__ static
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuemu_shared")))

// On what is the emulator's own: -fsanitize=thread instruments the kernels alone.
#ifdef CUEMU_HOOKS
#define CUEMU_PLAIN __attribute__((no_sanitize("thread")))
#else
#define CUEMU_PLAIN
#endif

extern "C" char __start_cuemu_shared[] __attribute__((weak));
extern "C" char __stop_cuemu_shared[] __attribute__((weak));

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };

namespace cuemu {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

inline bool reversed = false;

// --- Contexts: saved registers on a stack of their own. ---
#if defined(__x86_64__)
struct Context {
  void* sp = nullptr;
};
// The callee-saved registers and the stack are all that a call must keep; MXCSR is the same in
// every fiber.
extern "C" void cuemu_switch(void** save, void* load);
asm(R"(
.text
.type cuemu_switch, @function
cuemu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size cuemu_switch, .-cuemu_switch
)");
CUEMU_PLAIN inline void switch_to(Context& from, Context& to) { cuemu_switch(&from.sp, to.sp); }
CUEMU_PLAIN inline void prepare(Context& context, char* stack, void (*entry)()) {
  // As after a call: 8 bytes off a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + kStack) - 1;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.sp = top;
}
#else
using Context = ucontext_t;
CUEMU_PLAIN inline void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
CUEMU_PLAIN inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

// --- Threads of the block that runs. ---
enum class State { ready, in_warp_op, in_barrier, ended };
enum class Op { sync, ballot, any, all, match, shuffle, barrier, count, every, some };

struct Thread {
  Context context;
  State state = State::ready;
  Op op = Op::sync;
  unsigned mask = 0;
  uint64_t given = 0;     // to the operation it waits in
  uint64_t taken = 0;     // to the last one carried out: `given` may be of the next by then
  unsigned partners = 0;  // its lanes
  Index index;
  void* hook = nullptr;  // for CUEMU_HOOKS
};

inline std::function<void()> body;
inline Index grid_size, block_size;
// Of the block whose turn it is, as is shared memory.
inline Context scheduler;
inline std::vector<Thread> threads;
inline Thread* self = nullptr;
inline Index block;
inline uint64_t barrier_result = 0;

// Where the running thread has the kernel's arguments.
struct Arguments {
  const void* at;
  size_t bytes;
};
inline Arguments arguments = {nullptr, 0};

// Launches are shown to the hooks, and run nothing.
inline bool dry = false;

// A block that may run: what is above, while another has its turn.
struct Turn {
  Context at;  // where it goes on
  Context scheduler;
  std::vector<Thread> threads;
  Thread* self = nullptr;
  Index block;
  uint64_t barrier_result = 0;
  std::vector<char> shared;
  bool running = false;
};

inline int residents = 1;  // blocks that take turns
inline std::vector<Turn> turns;
inline int turn = 0;
inline Context grid;

// In a kernel: the next block has its turn.
CUEMU_PLAIN inline void yield() {
  if (residents > 1) switch_to(turns[turn].at, grid);
}

}  // namespace cuemu

// --- Hooks. ---
#ifdef CUEMU_HOOKS
#include CUEMU_HOOKS
#else
namespace cuemu::hooks {
inline void launch_begin(const char* /*kernel*/, int64_t /*blocks*/, int64_t /*threads*/,
                         cudaStream_t) {}
inline void launch_end() {}
// Of the block `cuemu::block`.
inline void block_begin() {}
inline void block_end() {}
inline void thread_begin(Thread&) {}
inline void thread_end(Thread&) {}
// Control goes to this thread, or to the scheduler where it is null.
inline void before_switch(Thread* /*to*/) {}
// Around every barrier and warp operation, in the thread; a barrier has no mask.
inline void arrive(Op, unsigned /*mask*/) {}
inline void leave(Op, unsigned /*mask*/) {}
// Around every atomic; the access inside is not instrumented.
inline void atomic_begin(void* /*at*/, size_t /*size*/) {}
inline void atomic_end(void* /*at*/, size_t /*size*/) {}
inline void fence(bool /*block_scope*/) {}
}  // namespace cuemu::hooks
#endif

namespace cuemu {

[[noreturn]] CUEMU_PLAIN inline void fail(const char* what, const Thread& thread) {
  std::fprintf(stderr, "cuemu: %s, block %u thread %u mask %08x op %d\n", what, block.x,
               thread.index.x, thread.mask, static_cast<int>(thread.op));
  std::abort();
}

CUEMU_PLAIN inline void enter() {
  hooks::thread_begin(*self);
  body();
  hooks::thread_end(*self);
  self->state = State::ended;
  hooks::before_switch(nullptr);
  switch_to(self->context, scheduler);
  std::abort();  // never resumed
}

CUEMU_PLAIN inline void wait(State state, Op op, unsigned mask, uint64_t given) {
  self->state = state;
  self->op = op;
  self->mask = mask;
  self->given = given;
  hooks::before_switch(nullptr);
  switch_to(self->context, scheduler);
}

CUEMU_PLAIN inline unsigned lane() { return self->index.x % kWarp; }

// The first thread of this one's warp, its operation carried out.
CUEMU_PLAIN inline const Thread* warp_op(Op op, unsigned mask, uint64_t given) {
  if ((mask >> lane() & 1) == 0) {
    self->op = op;
    self->mask = mask;
    fail("mask without the calling lane", *self);
  }
  hooks::arrive(op, mask);
  wait(State::in_warp_op, op, mask, given);
  hooks::leave(op, mask);
  return self - lane();
}

CUEMU_PLAIN inline uint64_t barrier(Op op, bool flag) {
  hooks::arrive(op, 0);
  wait(State::in_barrier, op, 0, flag);
  hooks::leave(op, 0);
  return barrier_result;
}

CUEMU_PLAIN inline bool carry_out_warp_ops(Thread* warp, int lanes) {
  bool any = false;
  for (int i = 0; i < lanes; ++i) {
    if (warp[i].state != State::in_warp_op) continue;
    bool complete = true, same = true;
    unsigned partners = 0;
    for (int j = 0; j < lanes; ++j) {
      if ((warp[i].mask >> j & 1) == 0 || warp[j].state == State::ended) continue;
      complete = complete && warp[j].state == State::in_warp_op && warp[j].mask == warp[i].mask;
      same = same && warp[j].op == warp[i].op;
      partners |= 1u << j;
    }
    if (!complete) continue;
    if (!same) fail("lanes of one mask in different operations", warp[i]);
    for (int j = 0; j < lanes; ++j) {
      if ((partners >> j & 1) == 0) continue;
      warp[j].taken = warp[j].given;
      warp[j].partners = partners;
      warp[j].state = State::ready;
    }
    any = true;
  }
  return any;
}

CUEMU_PLAIN inline bool carry_out_barrier() {
  const Thread* first = nullptr;
  uint64_t running = 0, set = 0;
  for (const Thread& thread : threads) {
    if (thread.state == State::ended) continue;
    if (thread.state != State::in_barrier)
      fail("deadlock: a warp operation lacks lanes of its mask", thread);
    if (first == nullptr) first = &thread;
    if (thread.op != first->op) fail("threads in different barriers", thread);
    ++running;
    set += thread.given;
  }
  if (first == nullptr) return false;
  barrier_result = first->op == Op::some ? set != 0 : first->op == Op::every ? set == running : set;
  for (Thread& thread : threads) {
    if (thread.state == State::in_barrier) thread.state = State::ready;
  }
  return true;
}

CUEMU_PLAIN inline void run_block() {
  const int count = static_cast<int>(threads.size()), warps = (count + kWarp - 1) / kWarp;
  if (__start_cuemu_shared != nullptr)
    std::memset(__start_cuemu_shared, 0xa5,
                static_cast<size_t>(__stop_cuemu_shared - __start_cuemu_shared));
  do {
    for (int w = 0; w < warps; ++w) {
      Thread* warp = &threads[(reversed ? warps - 1 - w : w) * kWarp];
      const int rest = static_cast<int>(threads.data() + count - warp),
                lanes = rest < kWarp ? rest : kWarp;
      do {
        for (int i = 0; i < lanes; ++i) {
          self = warp + (reversed ? lanes - 1 - i : i);
          if (self->state != State::ready) continue;
          hooks::before_switch(self);
          switch_to(scheduler, self->context);
        }
      } while (carry_out_warp_ops(warp, lanes));
    }
  } while (carry_out_barrier());
}

// Where it is set, launches go there, and run when their stream does: tests/fakegpu.
inline void (*enqueue)(cudaStream_t stream, std::function<void()> work) = nullptr;

CUEMU_PLAIN inline void enter_block() {
  hooks::block_begin();
  run_block();
  hooks::block_end();
  turns[turn].running = false;
  switch_to(turns[turn].at, grid);
  std::abort();  // never resumed
}

// Makes what is `mine` that of the block whose turn it is, or keeps it there: each undoes the
// other.
CUEMU_PLAIN inline void exchange(Turn& mine) {
  std::swap(scheduler, mine.scheduler);
  std::swap(threads, mine.threads);
  std::swap(self, mine.self);
  std::swap(block, mine.block);
  std::swap(barrier_result, mine.barrier_result);
}

CUEMU_PLAIN inline void take_turn(Turn& mine) {
  const size_t shared = residents > 1 && __start_cuemu_shared != nullptr
                            ? static_cast<size_t>(__stop_cuemu_shared - __start_cuemu_shared)
                            : 0;
  mine.shared.resize(shared);
  exchange(mine);
  if (shared != 0) std::memcpy(__start_cuemu_shared, mine.shared.data(), shared);
  switch_to(grid, mine.at);
  if (shared != 0) std::memcpy(mine.shared.data(), __start_cuemu_shared, shared);
  exchange(mine);
}

CUEMU_PLAIN inline void run_grid(const char* kernel, int64_t blocks, int64_t count,
                                 cudaStream_t stream, std::function<void()> run) {
  static char* stacks = nullptr;
  static int64_t capacity = 0;
  const int64_t needed = (count + 1) * residents;
  if (needed > capacity) {  // never freed: the next launch needs them again
    void* grown = mmap(nullptr, kStack * static_cast<size_t>(needed), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (grown == MAP_FAILED) std::abort();
    stacks = static_cast<char*>(grown);
    capacity = needed;
  }
  body = std::move(run);
  grid_size = {static_cast<unsigned>(blocks), 1, 1};
  block_size = {static_cast<unsigned>(count), 1, 1};
  hooks::launch_begin(kernel, blocks, count, stream);
  turns.resize(residents);
  int64_t begun = 0, ended = 0;
  while (ended < (dry ? 0 : blocks)) {
    for (turn = 0; turn < residents; ++turn) {
      Turn& mine = turns[turn];
      if (!mine.running) {
        if (begun == blocks) continue;
        char* stack = stacks + kStack * (count + 1) * turn;
        mine.block = {static_cast<unsigned>(reversed ? blocks - 1 - begun : begun), 0, 0};
        mine.threads.assign(static_cast<size_t>(count), Thread{});
        for (int64_t i = 0; i < count; ++i, stack += kStack) {
          mine.threads[i].index.x = static_cast<unsigned>(i);
          prepare(mine.threads[i].context, stack, enter);
        }
        prepare(mine.at, stack, enter_block);
        mine.running = true;
        ++begun;
      }
      take_turn(mine);
      if (!mine.running) ++ended;
    }
  }
  hooks::launch_end();
}

// A kernel with its arguments, which are in no memory that a kernel reaches on a GPU.
template <class Body>
struct Call {
  Body run;
  CUEMU_PLAIN void operator()() {
    arguments = {&run, sizeof run};
    run();
  }
};

template <class Body>
CUEMU_PLAIN void launch(const char* kernel, int64_t blocks, int64_t count, cudaStream_t stream,
                        Body run) {
  std::function<void()> call = Call<Body>{std::move(run)};
  if (enqueue == nullptr) return run_grid(kernel, blocks, count, stream, std::move(call));
  enqueue(stream, [=] { run_grid(kernel, blocks, count, stream, call); });
}

template <class T>
CUEMU_PLAIN uint64_t to_word(T x) {
  static_assert(sizeof(T) <= 8, "cuemu: shuffles carry at most 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &x, sizeof x);
  return word;
}

// The value of lane `from`, or of this one where from is out of the segment.
template <class T>
CUEMU_PLAIN T shuffle(unsigned mask, T x, int from) {
  const Thread* warp = warp_op(Op::shuffle, mask, to_word(x));
  const bool inside = from >= 0 && from < kWarp;
  if (inside && (self->partners >> from & 1) == 0)
    fail("shuffle from a lane that takes no part", *self);
  std::memcpy(&x, inside ? &warp[from].taken : &self->taken, sizeof x);
  return x;
}

// The lanes of this one's last operation that gave this value.
CUEMU_PLAIN inline unsigned lanes_where(const Thread* warp, uint64_t value) {
  unsigned lanes = 0;
  for (int i = 0; i < kWarp; ++i) {
    if ((self->partners >> i & 1) != 0 && warp[i].taken == value) lanes |= 1u << i;
  }
  return lanes;
}

// By value: what a kernel asks here is no access to memory.
CUEMU_PLAIN inline Index thread_index() { return self->index; }
CUEMU_PLAIN inline Index block_index() { return block; }
CUEMU_PLAIN inline Index block_dim() { return block_size; }
CUEMU_PLAIN inline Index grid_dim() { return grid_size; }

}  // namespace cuemu

#define threadIdx (::cuemu::thread_index())
#define blockIdx (::cuemu::block_index())
#define blockDim (::cuemu::block_dim())
#define gridDim (::cuemu::grid_dim())

CUEMU_PLAIN inline void __syncthreads() { ::cuemu::barrier(::cuemu::Op::barrier, false); }
CUEMU_PLAIN inline int __syncthreads_or(int x) {
  return static_cast<int>(::cuemu::barrier(::cuemu::Op::some, x != 0));
}
CUEMU_PLAIN inline int __syncthreads_and(int x) {
  return static_cast<int>(::cuemu::barrier(::cuemu::Op::every, x != 0));
}
CUEMU_PLAIN inline int __syncthreads_count(int x) {
  return static_cast<int>(::cuemu::barrier(::cuemu::Op::count, x != 0));
}

CUEMU_PLAIN inline void __syncwarp(unsigned mask = 0xffffffffu) {
  ::cuemu::warp_op(::cuemu::Op::sync, mask, 0);
}
CUEMU_PLAIN inline unsigned __ballot_sync(unsigned mask, int x) {
  return ::cuemu::lanes_where(::cuemu::warp_op(::cuemu::Op::ballot, mask, x != 0), 1);
}
CUEMU_PLAIN inline int __any_sync(unsigned mask, int x) {
  return ::cuemu::lanes_where(::cuemu::warp_op(::cuemu::Op::any, mask, x != 0), 1) != 0;
}
CUEMU_PLAIN inline int __all_sync(unsigned mask, int x) {
  return ::cuemu::lanes_where(::cuemu::warp_op(::cuemu::Op::all, mask, x != 0), 0) == 0;
}
template <class T>
CUEMU_PLAIN unsigned __match_any_sync(unsigned mask, T x) {
  const uint64_t word = ::cuemu::to_word(x);
  return ::cuemu::lanes_where(::cuemu::warp_op(::cuemu::Op::match, mask, word), word);
}
template <class T>
CUEMU_PLAIN T __shfl_sync(unsigned mask, T x, int from) {
  return ::cuemu::shuffle(mask, x, from % ::cuemu::kWarp);
}
template <class T>
CUEMU_PLAIN T __shfl_up_sync(unsigned mask, T x, unsigned by) {
  return ::cuemu::shuffle(mask, x, static_cast<int>(::cuemu::lane()) - static_cast<int>(by));
}
template <class T>
CUEMU_PLAIN T __shfl_down_sync(unsigned mask, T x, unsigned by) {
  return ::cuemu::shuffle(mask, x, static_cast<int>(::cuemu::lane() + by));
}
template <class T>
CUEMU_PLAIN T __shfl_xor_sync(unsigned mask, T x, int with) {
  return ::cuemu::shuffle(mask, x, static_cast<int>(::cuemu::lane()) ^ with);
}

// Integers only: a float atomic in a kernel must not compile.
template <class T>
CUEMU_PLAIN T atomicAdd(T* to, T x) {
  static_assert(static_cast<T>(0.5) == 0, "cuemu: no atomics on floats");
  ::cuemu::hooks::atomic_begin(to, sizeof *to);
  const T old = *to;
  *to = old + x;
  ::cuemu::hooks::atomic_end(to, sizeof *to);
  return old;
}
template <class T>
CUEMU_PLAIN T atomicMin(T* to, T x) {
  ::cuemu::hooks::atomic_begin(to, sizeof *to);
  const T old = *to;
  if (x < old) *to = x;
  ::cuemu::hooks::atomic_end(to, sizeof *to);
  return old;
}
template <class T>
CUEMU_PLAIN T atomicMax(T* to, T x) {
  ::cuemu::hooks::atomic_begin(to, sizeof *to);
  const T old = *to;
  if (x > old) *to = x;
  ::cuemu::hooks::atomic_end(to, sizeof *to);
  return old;
}
template <class T>
CUEMU_PLAIN T atomicOr(T* to, T x) {
  ::cuemu::hooks::atomic_begin(to, sizeof *to);
  const T old = *to;
  *to = old | x;
  ::cuemu::hooks::atomic_end(to, sizeof *to);
  return old;
}
template <class T>
CUEMU_PLAIN T atomicExch(T* to, T x) {
  ::cuemu::hooks::atomic_begin(to, sizeof *to);
  const T old = *to;
  *to = x;
  ::cuemu::hooks::atomic_end(to, sizeof *to);
  return old;
}
template <class T>
CUEMU_PLAIN T atomicCAS(T* to, T expected, T x) {
  ::cuemu::hooks::atomic_begin(to, sizeof *to);
  const T old = *to;
  if (old == expected) *to = x;
  ::cuemu::hooks::atomic_end(to, sizeof *to);
  return old;
}
// Copied as one access of 16 bytes, as on a GPU.
struct alignas(16) float4 {
  union {
    struct {
      float x, y, z, w;
    };
    float whole __attribute__((vector_size(16)));
  };
  constexpr float4() : whole{} {}
  constexpr float4(float a, float b, float c, float d) : whole{a, b, c, d} {}
};
template <class T>
T __ldcs(const T* from) {
  return *from;
}

CUEMU_PLAIN inline void __threadfence() { ::cuemu::hooks::fence(false); }
CUEMU_PLAIN inline void __threadfence_block() { ::cuemu::hooks::fence(true); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
