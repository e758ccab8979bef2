// What select.cpp works on: the tensors that share a threshold, cut into parts that a thread owns.
//
//   tensors  |---- 0 ----|- 1 -|--------- 2 ---------|
//   parts    |----------- 0 ----------|----- 1 ------|    equally many elements
//   pieces   |---- 0 ----|- 1 -|-- 2 -|----- 2 ------|    of one part and one tensor each
//
// Mostly there is one tensor, and so one piece a part.
#pragma once

#include <atomic>
#include <memory>

#include "../common/arguments.h"
#include "select.h"

namespace gcext {
namespace {

constexpr int64_t kBlock = 4096;   // elements between two checks of the capacity
constexpr int64_t kGrain = 32768;  // elements that are worth a thread
constexpr int64_t kGroup = 64;     // consecutive elements sampled together: whole cache lines
constexpr int64_t kSlack = 16;     // entries that the bodies may write past the end
constexpr uint32_t kTopKey = kInfKey - 1;

// Leaves new elements uninitialised: zeroing them would cost a pass.
template <class T>
struct Uninitialised : std::allocator<T> {
  template <class U>
  struct rebind {
    using other = Uninitialised<U>;
  };
  template <class U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
};
using Words = std::vector<uint32_t, Uninitialised<uint32_t>>;

// What a part holds of one tensor: elements [begin, end), of which the candidates [from, until) of
// the part. A candidate's place counts from `begin`.
struct Piece {
  int64_t tensor, begin, end;
  int64_t from = 0, until = 0;
  int64_t greater = 0, equal = 0, ties = 0, offset = 0;
  uint64_t bins[kBins] = {};
};

struct Part {
  std::vector<Piece> pieces;
  Words start, bits, keys;
  int64_t count = 0;      // candidates
  int64_t key_count = 0;  // of them within the bracket
  int64_t above = 0;      // of them above the bracket
  uint32_t highest = 0;
  bool no_memory = false;
  bool overflow = false;  // more candidates than the limit: the bracket is useless

  // Takes other pieces. The buffers stay.
  void clear() {
    pieces.clear();
    count = key_count = above = 0;
    highest = 0;
    no_memory = overflow = false;
  }
  void reserve(int64_t n) {
    const int64_t size = static_cast<int64_t>(bits.size());
    if (n <= size) return;
    start.resize(static_cast<size_t>(std::max(n, 2 * size)));
    bits.resize(static_cast<size_t>(std::max(n, 2 * size)));
  }
  // Reserves one more block. Where memory runs out the part drops its candidates, but the pass goes
  // on: a sum that is stored in place must not stop half-way.
  bool reserve_block() {
    if (no_memory) return false;
    try {
      reserve(count + kBlock + kSlack);
    } catch (const std::bad_alloc&) {
      no_memory = true;
      count = 0;
    }
    return !no_memory;
  }
  Candidates at(int64_t entry) { return {start.data() + entry, bits.data() + entry}; }
};

struct Parts {
  Part* first;
  int64_t count;
  Part* begin() const { return first; }
  Part* end() const { return first + count; }
};

// Tensors with one threshold, how much of them is selected, and where that goes.
struct Selection {
  const SelectArgs* tensors;
  int64_t count;  // of tensors
  int64_t k;
  bool ternary;
  Pairs to;       // with a capacity of k
  int64_t* info;  // kInfoSize for each tensor
  int64_t n;      // elements of all tensors

  Selection(const SelectArgs* tensors, int64_t count, int64_t k, bool ternary, const Pairs& to,
            int64_t* info)
      : tensors(tensors), count(count), k(k), ternary(ternary), to(to), info(info), n(0) {
    for (int64_t i = 0; i < count; ++i) n += tensors[i].n;
  }
};

// Goes through the elements of all tensors of a selection, one tensor after another.
class Walk {
 public:
  explicit Walk(const Selection& selection) : selection_(selection) {}

  // body(tensor, begin, end) for each stretch of one tensor among the next elements [first, last);
  // `first` is not before the last call's `last`.
  template <class Body>
  void over(int64_t first, int64_t last, const Body& body) {
    while (first < last) {
      while (first >= passed_ + selection_.tensors[tensor_].n)
        passed_ += selection_.tensors[tensor_++].n;
      const int64_t until = std::min(last, passed_ + selection_.tensors[tensor_].n);
      body(tensor_, first - passed_, until - passed_);
      first = until;
    }
  }

 private:
  const Selection& selection_;
  int64_t tensor_ = 0, passed_ = 0;
};

int64_t parts_of(int64_t n) {
  const int64_t most = int64_t{1} << 31;  // a place in a piece is 32 bits
  return std::max(parts_for(n, kGrain), (n + most - 1) / most);
}

// Gives each part its pieces.
void cut(const Selection& selection, Parts parts) {
  const int64_t n = selection.n;
  const int64_t step = ((n + parts.count - 1) / parts.count + kGroup - 1) / kGroup * kGroup;
  Walk walk(selection);
  int64_t at = 0;
  for (Part& part : parts) {
    part.clear();
    const int64_t end = std::min(n, at + step);
    walk.over(at, end, [&](int64_t tensor, int64_t from, int64_t until) {
      part.pieces.push_back({tensor, from, until});
    });
    at = end;
  }
}

template <class Body>
void for_parts(Parts parts, bool parallel, const Body& body) {
  if (parallel) {
    parallel_parts(parts.count, [&](int64_t i) { body(parts.first[i]); });
  } else {
    for (Part& part : parts) body(part);
  }
}

// body(item, worker) for items [0, items), each to the next worker that is free: in order, so the
// largest should come first.
template <class Body>
void hand_out(int64_t items, int64_t workers, const Body& body) {
  std::atomic<int64_t> next{0};
  if (items == 0) return;
  parallel_parts(std::min(items, workers), [&](int64_t worker) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;)
      body(item, worker);
  });
}

// What the keys above the k-th leave of k goes to ties, the first pieces first.
void share_ties(Parts parts, int64_t k) {
  for (const Part& part : parts)
    for (const Piece& piece : part.pieces) k -= piece.greater;
  for (Part& part : parts) {
    for (Piece& piece : part.pieces) {
      piece.ties = std::max<int64_t>(0, std::min(k, piece.equal));
      k -= piece.ties;
    }
  }
}

}  // namespace
}  // namespace gcext
