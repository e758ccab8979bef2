// Finds data races in kernels that run under the emulator: two accesses to one byte by different
// threads, at least one of them a write and not both strong, that nothing orders. Atomics are
// strong, and so are reads and writes of volatile objects. GCC's -fsanitize=thread puts a call
// before every access of a kernel; those calls end here and not in libtsan, which knows neither
// shared memory nor fences, remembers four accesses a word, and has too few threads for a grid.
//
// What orders an access before another, as in PTX's memory model:
//
//   1. the order of one thread's statements; launches, one after the other
//   2. a barrier, for the threads of a block; __syncwarp, for the lanes of its mask
//   3. fence, atomic, atomic on the same word, fence: __threadfence() by X, an atomic that follows
//      it by 1 and 2, a later atomic on that word, __threadfence() by Y that follows that one.
//      What X's fence follows comes before what follows Y's.
//
// The atomics may be volatile reads and writes, and are on global memory. Nothing else orders: not
// an atomic alone, not the order in which blocks happen to run, and not shuffles, ballots and
// matches, of which CUDA says that they imply no memory barrier. So a race is found whatever the
// schedule, as long as both accesses are made, but for 3: which of two atomics comes first is the
// schedule's, and a fence and a ticket may order what another schedule would not. Four blocks take
// turns, so that one that waits for another goes on, and others get in between.
// __threadfence_block() orders nothing here.
//
// How it is kept. A thread's time is two numbers: `interval`, the barriers it has passed, and
// `step`, its releases (__syncwarp, __threadfence). A segment is what a thread does at one time. An
// access is ordered before thread t where its interval is lower and its block t's (2), where its
// step is below what t knows of that lane of its warp (2), or where t's `acquired` has it (3).
//
//   fence    pending -> acquired; own time and acquired -> fenced
//   atomic   what its word holds -> pending; fenced -> what its word holds
//   barrier, __syncwarp    fenced, pending and acquired of each -> of all
//
// A cell is what is remembered of four bytes, or of one where bytes are accessed alone: the last
// plain write, and reads and strong writes as long as nothing orders them before a later one, up
// to four: the second is of another thread than the first, the third of another warp, the fourth
// of another block. A launch starts with empty cells, a block with empty ones of its shared memory.
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>

#include "cuemu.h"

extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));

namespace {

using cuemu::kWarp;

// --- Time. ---
using Steps = std::array<uint32_t, kWarp>;  // of a warp's lanes: what is below them is known

void raise_to(Steps& steps, const Steps& other) {
  for (int i = 0; i < kWarp; ++i) steps[i] = std::max(steps[i], other[i]);
}

struct Segment {
  uint32_t block, thread, interval, step;
};

// What is known of other threads.
struct Known {
  struct Block {
    uint32_t interval = 0;  // what is below it
    std::map<uint32_t, Steps> warps;
  };
  std::map<uint32_t, Block> blocks;

  bool has(const Segment& segment) const {
    const auto block = blocks.find(segment.block);
    if (block == blocks.end()) return false;
    if (segment.interval < block->second.interval) return true;
    const auto warp = block->second.warps.find(segment.thread / kWarp);
    return warp != block->second.warps.end() && segment.step < warp->second[segment.thread % kWarp];
  }
  void add(uint32_t block, uint32_t interval, uint32_t warp, const Steps& steps) {
    Block& to = blocks[block];
    to.interval = std::max(to.interval, interval);
    raise_to(to.warps[warp], steps);
  }
  void add(const Known& other) {
    for (const auto& [number, block] : other.blocks) {
      Block& to = blocks[number];
      to.interval = std::max(to.interval, block.interval);
      for (const auto& [warp, steps] : block.warps) raise_to(to.warps[warp], steps);
    }
  }
};
using KnownPtr = std::shared_ptr<const Known>;

// Both; the last answer is kept, as the threads of a block ask for the same.
KnownPtr both(const KnownPtr& a, const KnownPtr& b) {
  if (b == nullptr || a == b) return a;
  if (a == nullptr) return b;
  static KnownPtr last_a, last_b, last;
  if (a != last_a || b != last_b) {
    auto sum = std::make_shared<Known>(*a);
    sum->add(*b);
    last_a = a, last_b = b, last = sum;
  }
  return last;
}

struct ThreadTime {
  uint32_t block = 0, thread = 0, interval = 0, step = 0;
  uint32_t segment = 0;  // of this time, 0 where it has none yet
  bool waiting = false;  // in a barrier or __syncwarp that was not carried out
  bool has_fenced = false;
  uint32_t fenced_interval = 0;  // own time at the last fence
  Steps fenced_steps = {};
  Steps known = {};  // of the lanes of its warp
  KnownPtr acquired, fenced, pending;
  uintptr_t stack = 0;

  bool knows(const Segment& other) const {
    if (other.block == block) {
      if (other.thread == thread || other.interval < interval) return true;
      if (other.thread / kWarp == thread / kWarp && other.step < known[other.thread % kWarp])
        return true;
    }
    return acquired != nullptr && acquired->has(other);
  }
  void release() {
    known[thread % kWarp] = ++step;
    segment = 0;
  }
};

struct BlockTime {
  std::vector<ThreadTime> threads;
  uint64_t serial = 0;
};

std::vector<BlockTime> block_times;             // one a resident block
std::vector<Segment> segments;                  // of this launch; the first is none
ThreadTime* now = nullptr;                      // the thread whose kernel code runs
std::unordered_map<uintptr_t, KnownPtr> words;  // what atomics have left
uint64_t serials = 0, launch_serial = 0;
const char* kernel_name = "";

// --- Cells. ---
struct Mark {
  uint32_t segment = 0;
  uint32_t where : 31;  // in the library: whence the access was made
  uint32_t strong : 1;
};
struct Cell {
  Mark write, read[4], strong_write[4];
};

constexpr uintptr_t kPage = 4096;
constexpr uintptr_t kSharedBase = uintptr_t{1} << 60;  // shared memory of the first resident block
constexpr uintptr_t kSharedStep = uintptr_t{1} << 30;

struct Page {
  uint64_t serial = 0;  // of the launch or, of shared memory, of the block whose cells these are
  uintptr_t unit = 4;   // bytes a cell
  std::vector<Cell> cells;
};

constexpr size_t kMostPages = 4096;  // kept between launches
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
std::array<std::pair<uintptr_t, Page*>, 256> recent;

Page& page_of(uintptr_t at, uint64_t serial) {
  const uintptr_t number = at / kPage;
  auto& [of, page] = recent[number % recent.size()];
  if (page == nullptr || of != number) {
    std::unique_ptr<Page>& there = pages[number];
    if (there == nullptr) there = std::make_unique<Page>();
    of = number, page = there.get();
  }
  if (page->serial != serial) {
    page->serial = serial;
    page->unit = 4;
    page->cells.assign(kPage / 4, Cell{});
  }
  return *page;
}

void split(Page& page) {
  std::vector<Cell> cells(kPage);
  for (uintptr_t i = 0; i < kPage; ++i) cells[i] = page.cells[i / 4];
  page.cells.swap(cells);
  page.unit = 1;
}

// --- Reports. ---
std::string reports;
std::set<std::tuple<uint32_t, uint32_t>> reported;

void report(const char* what, uint32_t where, const char* before, const Mark& mark, uintptr_t at) {
  if (!reported.emplace(where, mark.where).second) return;
  const Segment& other = segments[mark.segment];
  char line[512];
  const bool shared = at >= kSharedBase;
  std::snprintf(line, sizeof line,
                "race in %s: %s by block %u thread %u at +0x%x, %s by block %u thread %u at +0x%x, "
                "%s 0x%zx\n",
                kernel_name, what, now->block, now->thread, where, before, other.block,
                other.thread, mark.where, shared ? "shared memory" : "address",
                static_cast<size_t>(shared ? at % kSharedStep : at));
  reports += line;
}

enum Kind { kRead = 1, kWrite = 2, kStrong = 4 };  // bits

const char* name_of(int kind) {
  if ((kind & kStrong) == 0) return (kind & kWrite) != 0 ? "write" : "read";
  return (kind & kWrite) != 0 ? "atomic or volatile write" : "volatile read";
}

// Keeps the mark beside those that nothing orders before it.
void keep(Mark (&marks)[4], const Mark& mark) {
  const Segment& own = segments[mark.segment];
  for (int i = 0; i < 4; ++i) {
    if (marks[i].segment == 0 || now->knows(segments[marks[i].segment])) {
      marks[i] = mark;
      return;
    }
    const Segment& first = segments[marks[0].segment];
    if (i == 1 && first.block == own.block && first.thread / kWarp == own.thread / kWarp) return;
    if (i == 2 && first.block == own.block) return;
  }
}

void access_cell(Cell& cell, int kind, const Mark& mark, uintptr_t at) {
  const auto check = [&](const Mark& other, int other_kind) {
    if (other.segment == 0 || other.segment == mark.segment) return;
    if (mark.strong && other.strong) return;
    if (now->knows(segments[other.segment])) return;
    report(name_of(kind), mark.where, name_of(other_kind), other, at);
  };
  check(cell.write, kWrite);
  for (const Mark& other : cell.strong_write) check(other, kWrite | kStrong);
  if ((kind & kWrite) == 0) return keep(cell.read, mark);
  for (const Mark& other : cell.read) check(other, other.strong ? kRead | kStrong : kRead);
  if (mark.strong) return keep(cell.strong_write, mark);
  cell.write = mark;
}

bool in_shared(uintptr_t at) {
  return at >= reinterpret_cast<uintptr_t>(__start_cuemu_shared) &&
         at < reinterpret_cast<uintptr_t>(__stop_cuemu_shared);
}

// As one address space for all resident blocks.
uintptr_t place_of(uintptr_t at) {
  if (!in_shared(at)) return at;
  return kSharedBase + kSharedStep * cuemu::turn +
         (at - reinterpret_cast<uintptr_t>(__start_cuemu_shared));
}

void access(uintptr_t at, size_t size, int kind, const void* from) {
  if (now->segment == 0) {
    now->segment = static_cast<uint32_t>(segments.size());
    segments.push_back({now->block, now->thread, now->interval, now->step});
  }
  Mark mark;
  mark.segment = now->segment;
  mark.where = static_cast<uint32_t>(static_cast<const char*>(from) - __ehdr_start) & 0x7fffffffu;
  mark.strong = (kind & kStrong) != 0;
  const uint64_t serial = in_shared(at) ? block_times[cuemu::turn].serial : launch_serial;
  at = place_of(at);
  const uintptr_t end = at + size;
  while (at < end) {
    Page& page = page_of(at, serial);
    if (page.unit == 4 && (at % 4 != 0 || end - at < 4)) split(page);
    access_cell(page.cells[at % kPage / page.unit], kind, mark, at);
    at += page.unit;
  }
}

// A kernel's access, unless it is to the thread's own stack.
inline void kernel_access(const void* at, size_t size, int kind, const void* from) {
  if (now == nullptr) return;
  const uintptr_t place = reinterpret_cast<uintptr_t>(at);
  if (place < now->stack && place + cuemu::kStack > now->stack) return;
  access(place, size, kind, from);
}

ThreadTime* time_of(const cuemu::Thread& thread) { return static_cast<ThreadTime*>(thread.hook); }

// What the fences of these threads cover, and what they have acquired and may acquire: all have it.
template <class Threads>
void share(const Threads& of) {
  KnownPtr acquired, fenced, pending;
  bool own = false;
  for (const ThreadTime* time : of) {
    acquired = both(acquired, time->acquired);
    fenced = both(fenced, time->fenced);
    pending = both(pending, time->pending);
    own = own || time->has_fenced;
  }
  if (own) {
    auto sum = fenced == nullptr ? std::make_shared<Known>() : std::make_shared<Known>(*fenced);
    for (const ThreadTime* time : of) {
      if (time->has_fenced)
        sum->add(time->block, time->fenced_interval, time->thread / kWarp, time->fenced_steps);
    }
    fenced = sum;
  }
  for (ThreadTime* time : of) {
    time->acquired = acquired, time->fenced = fenced, time->pending = pending;
    time->has_fenced = false;
  }
}

void carry_out_barrier(BlockTime& block) {
  std::vector<ThreadTime*> all;
  for (ThreadTime& time : block.threads) all.push_back(&time);
  share(all);
  for (ThreadTime* time : all) {
    ++time->interval;
    time->segment = 0;
    time->waiting = false;
  }
}

void carry_out_warp_sync(BlockTime& block, uint32_t thread, unsigned partners) {
  std::vector<ThreadTime*> all;
  for (int i = 0; i < kWarp; ++i) {
    if ((partners >> i & 1) != 0) all.push_back(&block.threads[thread / kWarp * kWarp + i]);
  }
  share(all);
  Steps known = {};
  for (ThreadTime* time : all) {
    time->release();
    raise_to(known, time->known);
  }
  for (ThreadTime* time : all) {
    time->known = known;
    time->waiting = false;
  }
}

// An atomic, or what is volatile; the other blocks have a turn before it.
void strong_access(void* at, size_t size, int kind, const void* from) {
  ThreadTime* const time = now;
  if (time == nullptr) return;
  const uintptr_t place = reinterpret_cast<uintptr_t>(at);
  now = nullptr;
  if (!in_shared(place)) cuemu::yield();
  now = time;
  access(place, size, kind | kStrong, from);
  if (in_shared(place)) return;  // a fence beside it orders nothing here: barriers are for that
  if (time->has_fenced) share(std::array{time});
  if (time->fenced == nullptr && words.empty()) return;
  KnownPtr& word = words[place];
  if ((kind & kRead) != 0) time->pending = both(time->pending, word);
  if (kind == kWrite) {
    word = time->fenced;  // what was written before it is not what is read
  } else if ((kind & kWrite) != 0) {
    word = both(word, time->fenced);
  }
}

bool orders(cuemu::Op op) {
  using cuemu::Op;
  switch (op) {
    case Op::sync:
    case Op::barrier:
    case Op::count:
    case Op::every:
    case Op::some:
      return true;
    case Op::ballot:
    case Op::any:
    case Op::all:
    case Op::match:
    case Op::shuffle:
      return false;
  }
  return false;
}

}  // namespace

namespace cuemu::hooks {

const bool blocks_take_turns = (residents = 4, true);

void launch_begin(const char* kernel, int64_t, int64_t, cudaStream_t) {
  kernel_name = kernel;
  launch_serial = ++serials;
  segments.assign(1, {});
  words.clear();
  block_times.resize(residents);
  if (pages.size() > kMostPages) {
    pages.clear();
    recent = {};
  }
}

void launch_end() {}

void block_begin() {
  BlockTime& block = block_times[turn];
  block.serial = ++serials;
  block.threads.assign(threads.size(), {});
  for (size_t i = 0; i < threads.size(); ++i) {
    block.threads[i].block = cuemu::block.x;
    block.threads[i].thread = static_cast<uint32_t>(i);
    threads[i].hook = &block.threads[i];
  }
}

void block_end() {}

void thread_begin(Thread& thread) {
  now = time_of(thread);
  now->stack = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) + 512;
}

void thread_end(Thread&) { now = nullptr; }

void before_switch(Thread* to) {
  // A thread that has not begun sets it itself.
  now = to != nullptr && time_of(*to)->stack != 0 ? time_of(*to) : nullptr;
}

void arrive(Op op, unsigned) { time_of(*self)->waiting = orders(op); }

// The first that leaves finds the others as they arrived.
void leave(Op, unsigned mask) {
  ThreadTime* const time = time_of(*self);
  if (!time->waiting) return;
  BlockTime& block = block_times[turn];
  if (mask == 0) {
    carry_out_barrier(block);
  } else {
    carry_out_warp_sync(block, time->thread, self->partners);
  }
}

void atomic_from(void* at, size_t size, const void* from) {
  strong_access(at, size, kRead | kWrite, from);
}

void fence(bool block_scope) {
  if (block_scope) return;
  now->acquired = both(now->acquired, now->pending);
  now->fenced = both(now->fenced, now->acquired);
  now->pending = nullptr;
  now->release();
  now->has_fenced = true;
  now->fenced_interval = now->interval;
  now->fenced_steps = now->known;
}

}  // namespace cuemu::hooks

// --- What -fsanitize=thread calls. ---
#define CUEMU_ACCESS(name, access, size, kind) \
  void __tsan_##name(void* at) { access(at, size, kind, __builtin_return_address(0)); }
#define CUEMU_ACCESSES(n)                                    \
  CUEMU_ACCESS(read##n, kernel_access, n, kRead)             \
  CUEMU_ACCESS(write##n, kernel_access, n, kWrite)           \
  CUEMU_ACCESS(unaligned_read##n, kernel_access, n, kRead)   \
  CUEMU_ACCESS(unaligned_write##n, kernel_access, n, kWrite) \
  CUEMU_ACCESS(volatile_read##n, strong_access, n, kRead)    \
  CUEMU_ACCESS(volatile_write##n, strong_access, n, kWrite)

extern "C" {
CUEMU_ACCESSES(1)
CUEMU_ACCESSES(2)
CUEMU_ACCESSES(4)
CUEMU_ACCESSES(8)
CUEMU_ACCESSES(16)
void __tsan_read_range(void* at, size_t size) {
  kernel_access(at, size, kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* at, size_t size) {
  kernel_access(at, size, kWrite, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void*, void*) {}

// The races since the last call, a line each.
__attribute__((visibility("default"))) const char* emu_races() {
  static std::string last;
  last = std::move(reports);
  reports.clear();
  reported.clear();
  return last.c_str();
}
}
