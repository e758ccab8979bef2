#include "support.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "common/arguments.h"
#include "common/packet.h"
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
  // Each thread counts its marks, and then writes them behind those of the threads before it.
  const int64_t words = static_cast<int64_t>(marked.size());
  std::vector<int64_t> count(static_cast<size_t>(parts) + 1);
  const auto for_words = [&](const auto& body) {
    parallel_parts(
        parts, [&](int64_t part) { body(part, words * part / parts, words * (part + 1) / parts); });
  };
  for_words([&](int64_t part, int64_t from, int64_t until) {
    int64_t own = 0;
    for (int64_t w = from; w < until; ++w)
      own += __builtin_popcountll(marked[static_cast<size_t>(w)]);
    count[static_cast<size_t>(part) + 1] = own;
  });
  std::partial_sum(count.begin(), count.end(), count.begin());
  for_words([&](int64_t part, int64_t from, int64_t until) {
    Index* to = index + count[static_cast<size_t>(part)];
    for (int64_t w = from; w < until; ++w)
      for (uint64_t word = marked[static_cast<size_t>(w)]; word != 0; word &= word - 1)
        *to++ = static_cast<Index>(64 * w + __builtin_ctzll(word));
  });
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

// Most of the work is waiting for the elements' lines: once for both.
template <class Index>
void take_elements(float* sum, const Index* index, int64_t k, float* value) {
  constexpr int64_t kAhead = 32;
  const int64_t parts = parts_for(k, kGrain);
  parallel_parts(parts, [&](int64_t part) {
    const int64_t until = k * (part + 1) / parts;
    for (int64_t i = k * part / parts; i < until; ++i) {
      if (i + kAhead < until) __builtin_prefetch(sum + index[i + kAhead], 1);
      value[i] = std::exchange(sum[index[i]], 0.0f);
    }
  });
}

// Where info has an error, zeros, and the sum stays as it is.
Tensor take_out(Tensor sum, const Tensor& index, const Tensor& info) {
  check_dense(sum, ScalarType::Float, "take_out: sum");
  check_dense(info, ScalarType::Long, "take_out: info");
  GCEXT_CHECK(info.numel() == kInfoSize, "take_out: info must have 4 elements, got ", info.numel(),
              ".");
  const bool wide = index.scalar_type() == ScalarType::Long;
  check_dense(index, wide ? ScalarType::Long : ScalarType::Int, "take_out: index");
  const int64_t k = index.numel();
  check_rising("take_out", {PacketView{index.const_data_ptr(), nullptr, k, wide, false}},
               sum.numel());
  Tensor value = pooled_empty(k, ScalarType::Float);
  float *const from = sum.mutable_data_ptr<float>(), *const to = value.mutable_data_ptr<float>();
  if (info.const_data_ptr<int64_t>()[kInfoStatus] != kSelectOk)
    std::fill_n(to, k, 0.0f);
  else if (wide)
    take_elements(from, index.const_data_ptr<int64_t>(), k, to);
  else
    take_elements(from, index.const_data_ptr<int32_t>(), k, to);
  return value;
}

}  // namespace

GCEXT_OPERATOR(CPU, take_out, "(Tensor(a!) sum, Tensor index, Tensor info) -> Tensor")
GCEXT_OPERATOR(CompositeExplicitAutograd, random_support, "(int seed, int k, int numel) -> Tensor")

}  // namespace gcext
