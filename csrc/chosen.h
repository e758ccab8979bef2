// What threshold and wangni do on the CPU with the elements that they choose: a bit for each, and
// in a later pass their pairs, and what is left of their sums.
#pragma once

#include <numeric>

#include "common/pool.h"
#include "quantize_pass.h"

namespace gcext {

// Elements of one kind: the bits, and how many there are before each part.
class Marked {
 public:
  Marked(int64_t n, int64_t parts)
      : words_(static_cast<size_t>(n / 64 + 1)), first_(static_cast<size_t>(parts + 1)) {}

  // Of the elements from `begin` on, a multiple of 64.
  uint64_t* words(int64_t begin) { return words_.data() + begin / 64; }
  void add(int64_t part, int64_t count) { first_[static_cast<size_t>(part + 1)] += count; }

  // Once all are marked.
  void settle() { std::partial_sum(first_.begin(), first_.end(), first_.begin()); }
  int64_t before(int64_t part) const { return first_[static_cast<size_t>(part)]; }
  int64_t count() const { return first_.back(); }

  // body(i) for those of n elements from `begin` on, i counting from there.
  template <class Body>
  void each(int64_t begin, int64_t n, const Body& body) const {
    const uint64_t* const words = words_.data() + begin / 64;
    for (int64_t first = 0; first < n; first += 64) {
      for (uint64_t word = words[first / 64]; word != 0; word &= word - 1)
        body(first + __builtin_ctzll(word));
    }
  }

 private:
  std::vector<uint64_t, Pooled<uint64_t>> words_;
  std::vector<int64_t> first_;
};

// Where the pairs of one part go next.
template <class Index>
struct PairsTo {
  Index* index;
  float* value;

  // Those of n elements from `begin` on, their sums being sums[i], of which rest[i] becomes what is
  // left, unless rest is null; sent(sum) is what travels.
  template <class Sums, class Sent>
  void put(const Marked& marked, int64_t begin, int64_t n, const Sums& sums, float* rest,
           const Sent& sent) {
    marked.each(begin, n, [&](int64_t i) {
      const float x = sums[i], own = sent(x);
      *index++ = static_cast<Index>(begin + i);
      *value++ = own;
      if (rest != nullptr) rest[i] = x - own;
    });
  }
};

// Whether a pass leaves the sums in out, for later ones: where that is not the memory, which
// nothing may be written to before all sums are known to be finite.
inline bool keeps_sums(const HostSource& source) {
  return source.out != nullptr && !in_place(source);
}

// body(begin, n, sums, rest) for a part's elements, a range after another. Where out has the sums
// it is touched again where body does so alone.
template <class Body>
void for_sums(const QuantizeTable& table, const HostSource& source, const Cells& cells,
              int64_t part, int64_t parts, const Body& body) {
  if (in_place(source)) {
    for_part(table, source, cells, part, parts, [&](const Cell& cell, float* acc) {
      body(cell.begin, cell.size, acc, acc);
      store(table, source, cells.n, cell, acc);
    });
    return;
  }
  const int64_t begin = cells.begin(cells.count() * part / parts);
  const int64_t last = cells.count() * (part + 1) / parts - 1;
  const int64_t n = cells.begin(last) + cells.size(last) - begin;
  float* const none = nullptr;
  if (source.out != nullptr) {
    body(begin, n, source.out + begin, source.out + begin);
  } else if (source.half.at != nullptr) {
    body(begin, n, Halves{source.half.at + 2 * begin, source.half.brain}, none);
  } else {
    body(begin, n, source.tensor + begin, none);
  }
}

}  // namespace gcext
