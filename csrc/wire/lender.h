// Threads and memory. The module has neither of its own: who loads it lends it some, gcext torch's
// threads and the memory that the kernels use again (csrc/common/lender.cpp). Without them work is
// done in order, and arrays are NumPy's own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <vector>

#include "../common/fpenv.h"

namespace gcext::wire {

struct Lender {
  int64_t (*threads)() = nullptr;  // at least 1
  // Runs body(context, part) for each part in [0, parts), in any order. No body throws.
  void (*run)(int64_t parts, void (*body)(void* context, int64_t part), void* context) = nullptr;
  void* (*take)(size_t bytes) = nullptr;  // aligned for any number; std::bad_alloc
  void (*give)(void* memory) = nullptr;
};

// Not while work is under way.
void set_lender(const Lender& lender);
const Lender& lender();

// Indices, with their values, that are worth a thread.
#ifdef GCEXT_FUZZ_SHORT
constexpr int64_t kNumbersOfPart = 64;
#else
constexpr int64_t kNumbersOfPart = int64_t{1} << 16;
#endif

// How many contiguous parts to cut n items into: one a thread, but none smaller than grain.
int64_t part_count(int64_t n, int64_t grain);

// Of what several threads throw, keeps what the first of their items has thrown.
class FirstError {
 public:
  template <class Body>
  void guard(int64_t item, const Body& body) {
    try {
      body(item);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (error_ && item > item_) return;
      item_ = item;
      error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  int64_t item_ = 0;
  std::exception_ptr error_;
};

// Runs body(part) for each part in [0, parts), in the kernels' floating-point environment. What the
// first of the parts that fail has thrown is thrown.
template <class Body>
void run_parts(int64_t parts, const Body& body) {
  if (parts == 1) return body(int64_t{0});
  struct Call {
    const Body& body;
    FirstError error;
  } call{body, {}};
  const auto run = [](void* context, int64_t part) {
    Call& own = *static_cast<Call*>(context);
    const KernelFpEnv env;
    own.error.guard(part, own.body);
  };
  lender().run(parts, run, &call);
  call.error.rethrow();
}

// Moves rising numbers that each part has counted from 0 on behind those of the parts before.
// reach: of each part, its last number and one more; first(part): where in `index` its numbers
// begin; index: nullptr where none are kept. False, and nothing moved, where one is not below
// limit.
template <class First, class Index>
bool join_parts(std::vector<uint64_t> reach, uint64_t limit, const First& first, Index* index) {
  uint64_t end = 0;
  for (uint64_t& each : reach) {
    const uint64_t begin = end;
    end += each;
    if (end > limit) return false;
    each = begin;
  }
  if (index == nullptr) return true;
  run_parts(static_cast<int64_t>(reach.size()), [&](int64_t part) {
    const auto before = static_cast<Index>(reach[static_cast<size_t>(part)]);
    if (before == 0) return;
    const int64_t last = first(part + 1);
    for (int64_t i = first(part); i < last; ++i) index[i] += before;
  });
  return true;
}

// Runs body(i) for each i in [0, n), items of size(i) numbers: large ones in order, as they may use
// the threads themselves, and the others side by side. What the first item that fails has thrown is
// thrown.
template <class Size, class Body>
void run_items(int64_t n, const Size& size, const Body& body) {
  constexpr int64_t kLargeItem = 2 * kNumbersOfPart;
  int64_t small = 0;
  for (int64_t i = 0; i < n; ++i) small += size(i) < kLargeItem ? size(i) : 0;
  const int64_t parts = n == 1 ? 1 : part_count(small, kNumbersOfPart);
  if (parts == 1) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  FirstError error;
  for (int64_t i = 0; i < n; ++i)
    if (size(i) >= kLargeItem) error.guard(i, body);
  run_parts(parts, [&](int64_t part) {
    int64_t before = 0;  // of the small items before this one; who has its first number runs it
    for (int64_t i = 0; i < n; ++i) {
      if (size(i) >= kLargeItem) continue;
      if (before * parts / (small + 1) == part) error.guard(i, body);
      before += size(i);
    }
  });
  error.rethrow();
}

// Copies bytes, on several threads where they are many.
void copy_bytes(const void* from, int64_t bytes, void* to);

}  // namespace gcext::wire
