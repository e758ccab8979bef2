// Elements that are marked, a bit each and 64 a word.
#pragma once

#include <cstdint>

namespace gcext {

// body(i) for those of n elements that have a bit in the words.
template <class Body>
void for_marked(const uint64_t* words, int64_t n, const Body& body) {
  for (int64_t first = 0; first < n; first += 64) {
    for (uint64_t word = words[first / 64]; word != 0; word &= word - 1)
      body(first + __builtin_ctzll(word));
  }
}

// Where the pairs of one part go next.
template <class Index>
struct PairsTo {
  Index* index;
  float* value;

  // Those of n elements from `begin` on, their sums being sums[i], of which rest[i] becomes what is
  // left, unless rest is null; sent(sum) is what travels.
  template <class Sums, class Sent>
  void put(const uint64_t* words, int64_t begin, int64_t n, const Sums& sums, float* rest,
           const Sent& sent) {
    PairsTo next = *this;  // in registers
    for_marked(words, n, [&](int64_t i) {
      const float x = sums[i], own = sent(x);
      *next.index++ = static_cast<Index>(begin + i);
      *next.value++ = own;
      if (rest != nullptr) rest[i] = x - own;
    });
    *this = next;
  }
};

}  // namespace gcext
