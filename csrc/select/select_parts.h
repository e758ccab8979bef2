// What select.cpp works on: the tensors that share a threshold, cut into tiles that the threads
// take one by one, since equally many elements can hold very different numbers of candidates.
//
//   tensors  |---- 0 ----|- 1 -|--------- 2 ---------|
//   tiles    |------- 0 -------|-- 1 --|----- 2 -----|    about equally many elements
//   pieces   |---- 0 ----|- 1 -|-- 2 --|----- 2 -----|    of one tile and one tensor each
//
// Each thread has a part, where the candidates of its tiles stand one after another. The order of
// all is that of the pieces.
#pragma once

#include <atomic>
#include <memory>

#include "../common/arguments.h"
#include "../common/pool.h"
#include "select.h"

namespace gcext {
namespace {

constexpr int64_t kBlock = 4096;   // elements between two checks of the capacity
constexpr int64_t kGrain = 32768;  // elements that are worth a thread
constexpr int64_t kTiles = 16;     // a thread, unless they have fewer elements than
constexpr int64_t kLeastTile = 65536;
constexpr int64_t kGroup = 64;  // consecutive elements sampled together: whole cache lines
constexpr int64_t kSlack = 16;  // entries that the bodies may write past the end
constexpr uint32_t kTopKey = kInfKey - 1;

using Words = std::vector<uint32_t, Pooled<uint32_t>>;

struct Part {
  Words start, bits, keys;
  int64_t count = 0;      // candidates
  int64_t key_count = 0;  // of them within the bracket
  int64_t above = 0;      // of them above the bracket
  uint32_t highest = 0;
  bool no_memory = false;
  bool overflow = false;  // more candidates than the limit: the bracket is useless

  // Forgets its candidates. The buffers stay.
  void clear() {
    count = key_count = above = 0;
    highest = 0;
    no_memory = overflow = false;
  }
  void reserve(int64_t n) {
    const int64_t size = static_cast<int64_t>(bits.size());
    if (n <= size) return;
    start.resize(static_cast<size_t>(std::max(n, size + size / 2)));
    bits.resize(start.size());
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
  Candidates at(int64_t entry, bool many = false) {
    return {start.data() + entry, bits.data() + entry, many};
  }
};

// What a tile holds of one tensor: elements [begin, end), of which the candidates [from, until) of
// a part. A candidate's place counts from `begin`.
struct Piece {
  Piece(int64_t tensor, int64_t begin, int64_t end) : tensor(tensor), begin(begin), end(end) {}

  int64_t tensor, begin, end;
  Part* part = nullptr;
  int64_t from = 0, until = 0;
  int64_t greater = 0, equal = 0, ties = 0, offset = 0;
  int64_t cut = INT64_MAX;  // the first element whose tie is not selected
  uint64_t bins[kBins] = {};
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

struct Tile {
  size_t first, last;  // pieces [first, last)
};

struct Pieces {
  std::vector<Piece> all;
  std::vector<Tile> tiles;

  // Those of a selection, for so many threads.
  void cut(const Selection& selection, int64_t threads) {
    constexpr int64_t kMost = int64_t{1} << 31;  // a place in a piece is 32 bits
    const int64_t n = selection.n;
    const int64_t each =
        threads == 1 ? 1 : std::clamp(n / (threads * kLeastTile), int64_t{1}, kTiles);
    const int64_t share = std::min(n / (threads * each) + 1, kMost - kGroup);
    const int64_t size = (share + kGroup - 1) / kGroup * kGroup;
    all.clear();
    tiles.clear();
    Walk walk(selection);
    for (int64_t at = 0; at < n; at += size) {
      const size_t first = all.size();
      walk.over(at, std::min(n, at + size), [&](int64_t tensor, int64_t from, int64_t until) {
        all.emplace_back(tensor, from, until);  // its bins are 2 KB: no copy
      });
      tiles.push_back({first, all.size()});
    }
  }
};

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

// The same, but each worker begins with items of its own, always the same ones, whose memory its
// core's cache may still hold; then it takes what is left of the others', unless each has but one:
// to wait for a thread that is about to wake up takes less than its item does.
template <class Body>
void hand_out_own(int64_t items, int64_t workers, const Body& body) {
  struct alignas(64) Queue {
    std::atomic<int64_t> next;
  };
  const int64_t count = std::min(items, workers);
  if (count == 0) return;
  std::vector<Queue> queues(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) queues[static_cast<size_t>(i)].next = items * i / count;
  parallel_parts(count, [&](int64_t worker) {
    for (int64_t i = worker; i < worker + (items > count ? count : 1); ++i) {
      auto& next = queues[static_cast<size_t>(i % count)].next;
      const int64_t end = items * (i % count + 1) / count;
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < end;)
        body(item, worker);
    }
  });
}

// body(piece) for every piece.
template <class Body>
void for_pieces(Pieces& pieces, bool parallel, int64_t workers, const Body& body) {
  hand_out_own(static_cast<int64_t>(pieces.tiles.size()), parallel ? workers : 1,
               [&](int64_t i, int64_t) {
                 const Tile& tile = pieces.tiles[static_cast<size_t>(i)];
                 for (size_t at = tile.first; at < tile.last; ++at) body(pieces.all[at]);
               });
}

// What the keys above the k-th leave of k goes to ties, the first pieces first.
void share_ties(Pieces& pieces, int64_t k) {
  for (const Piece& piece : pieces.all) k -= piece.greater;
  for (Piece& piece : pieces.all) {
    piece.ties = std::max<int64_t>(0, std::min(k, piece.equal));
    k -= piece.ties;
  }
}

}  // namespace
}  // namespace gcext
