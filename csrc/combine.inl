// combine: the bodies, compiled once per instruction set. See combine.h for the formulas.
#include "combine.h"

namespace gcext::GCEXT_ISA {
namespace {

// The loops over entries are scalar: a scatter stores one lane after the other anyway.
int64_t add(const PacketView& p, int64_t at, int64_t begin, int64_t end, double weight,
            double* sum) {
  return p.with_index([&, value = p.value](auto* index) {
    for (; at < p.k && index[at] < end; ++at)
      sum[index[at] - begin] += weight * static_cast<double>(value[at]);
    return at;
  });
}

void add_dense(const float* value, int64_t n, double weight, double* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * static_cast<double>(value[i]);
}

int64_t place(const PacketView& p, int64_t at, int64_t begin, int64_t end, double weight,
              float* out) {
  return p.with_index([&, value = p.value](auto* index) {
    for (; at < p.k && index[at] < end; ++at)  // 0 + x: a product of -0 is +0, as in a sum
      out[index[at] - begin] = static_cast<float>(0.0 + weight * static_cast<double>(value[at]));
    return at;
  });
}

void round(double* sum, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(sum[i]);
    sum[i] = 0;
  }
}

void add_in_place(const PacketView& p, int64_t from, int64_t until, float alpha, float* dense) {
  const float* value = p.value;
  if (p.dense) {
    for (int64_t i = from; i < until; ++i) dense[i] += alpha * value[i];
  } else {
    p.with_index([&](auto* index) {
      for (int64_t i = from; i < until; ++i) dense[index[i]] += alpha * value[i];
    });
  }
}

// A difference of a number that is not finite with itself is no number.
bool stays_finite(const PacketView& p, int64_t from, int64_t until, float alpha,
                  const float* dense) {
  const float* value = p.value;
  bool finite = true;
  const auto look = [&](float held, float add) {
    const float sum = held + alpha * add;
    finite = finite && (sum - sum == 0.0f || held - held != 0.0f);
  };
  if (p.dense) {
    for (int64_t i = from; i < until; ++i) look(dense[i], value[i]);
  } else {
    p.with_index([&](auto* index) {
      for (int64_t i = from; i < until; ++i) look(dense[index[i]], value[i]);
    });
  }
  return finite;
}

}  // namespace

const CombineTable combine_table = {add, add_dense, place, round, add_in_place, stays_finite};

}  // namespace gcext::GCEXT_ISA
