#include "support.h"

#include "common/pool.h"

namespace gcext {
namespace {

constexpr int64_t kGrain = 1 << 12;  // draws that are worth a thread

// Sorting by marking: where there are many indices, a bit for every element is less than they are.
constexpr int64_t kWordsPerIndex = 8;

constexpr int64_t kWalkers = 512;  // numbers that are walked side by side

// P(first) .. P(first + n - 1) in any order, n <= kWalkers. All walk on until none is left that has
// not come below the end.
template <class Index>
void walk(const SupportPermutation& permutation, uint64_t first, int64_t n, Index* index) {
  uint64_t x[kWalkers];
  Index found[kWalkers + 1];  // one more, as a number that is not kept is written, too
  int64_t out = 0;
  for (int64_t i = 0; i < n; ++i) x[i] = first + static_cast<uint64_t>(i);
  for (int64_t left = n; left > 0;) {
    GCEXT_TABLE(support_table).step(permutation, left, x);
    int64_t on = 0;
    for (int64_t i = 0; i < left; ++i) {
      const bool inside = x[i] < permutation.n();
      found[out] = static_cast<Index>(x[i]);
      x[on] = x[i];
      out += inside;
      on += !inside;
    }
    left = on;
  }
  std::copy_n(found, n, index);
}

template <class Index>
void fill(const SupportPermutation& permutation, int64_t k, int64_t numel, Index* index) {
  const int64_t parts = parts_for(k, kGrain);
  parallel_parts(parts, [&](int64_t part) {
    const int64_t until = k * (part + 1) / parts;
    for (int64_t j = k * part / parts; j < until; j += kWalkers)
      walk(permutation, static_cast<uint64_t>(j), std::min(kWalkers, until - j), index + j);
  });
  if (numel / 64 > kWordsPerIndex * k) {
    std::sort(index, index + k);
    return;
  }
  std::vector<uint64_t> marked(static_cast<size_t>(numel / 64 + 1));
  for (int64_t j = 0; j < k; ++j)
    marked[static_cast<size_t>(index[j] >> 6)] |= uint64_t{1} << (index[j] & 63);
  int64_t base = 0;
  for (uint64_t word : marked) {
    for (; word != 0; word &= word - 1) *index++ = static_cast<Index>(base + __builtin_ctzll(word));
    base += 64;
  }
}

Tensor random_support(int64_t seed, int64_t k, int64_t numel) {
  GCEXT_CHECK(k >= 0 && k <= numel, "random_support: k must be in [0, numel], got ", k, " of ",
              numel, ". Draw fewer.");
  const SupportPermutation permutation(static_cast<uint64_t>(seed), static_cast<uint64_t>(numel));
  const bool narrow = numel <= INT32_MAX;
  Tensor index = pooled_empty(k, narrow ? ScalarType::Int : ScalarType::Long);
  if (narrow)
    fill(permutation, k, numel, index.mutable_data_ptr<int32_t>());
  else
    fill(permutation, k, numel, index.mutable_data_ptr<int64_t>());
  return index;
}

}  // namespace

GCEXT_OPERATOR(CompositeExplicitAutograd, random_support, "(int seed, int k, int numel) -> Tensor")

}  // namespace gcext
