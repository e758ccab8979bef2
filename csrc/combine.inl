// combine: the bodies, compiled once per instruction set. See combine.h for the formulas.
#include <cstdint>

#include "combine.h"

namespace gcext {
namespace GCEXT_ISA {
namespace {

// The walks are scalar: a scatter stores one lane after the other anyway.
template <class Int>
int64_t add_at(const Int* index, const float* value, int64_t at, int64_t k, int64_t begin,
               int64_t end, double weight, double* sum) {
  for (; at < k && index[at] < end; ++at)
    sum[index[at] - begin] += weight * static_cast<double>(value[at]);
  return at;
}

int64_t add(const PacketView& p, int64_t at, int64_t begin, int64_t end, double weight,
            double* sum) {
  return p.wide ? add_at(p.index64(), p.value, at, p.k, begin, end, weight, sum)
                : add_at(p.index32(), p.value, at, p.k, begin, end, weight, sum);
}

void add_dense(const float* value, int64_t n, double weight, double* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += weight * static_cast<double>(value[i]);
}

template <class Int>
int64_t place_at(const Int* index, const float* value, int64_t at, int64_t k, int64_t begin,
                 int64_t end, double weight, float* out) {
  for (; at < k && index[at] < end; ++at)  // 0 + x: a product of -0 is +0, as in a sum
    out[index[at] - begin] = static_cast<float>(0.0 + weight * static_cast<double>(value[at]));
  return at;
}

int64_t place(const PacketView& p, int64_t at, int64_t begin, int64_t end, double weight,
              float* out) {
  return p.wide ? place_at(p.index64(), p.value, at, p.k, begin, end, weight, out)
                : place_at(p.index32(), p.value, at, p.k, begin, end, weight, out);
}

void round(double* sum, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<float>(sum[i]);
    sum[i] = 0;
  }
}

template <class Int>
void add_in_place_at(const Int* index, const float* value, int64_t from, int64_t until, float alpha,
                     float* dense) {
  for (int64_t i = from; i < until; ++i) dense[index[i]] += alpha * value[i];
}

void add_in_place(const PacketView& p, int64_t from, int64_t until, float alpha, float* dense) {
  if (p.dense) {
    for (int64_t i = from; i < until; ++i) dense[i] += alpha * p.value[i];
  } else if (p.wide) {
    add_in_place_at(p.index64(), p.value, from, until, alpha, dense);
  } else {
    add_in_place_at(p.index32(), p.value, from, until, alpha, dense);
  }
}

}  // namespace

extern const CombineTable combine_table;
const CombineTable combine_table = {add, add_dense, place, round, add_in_place};

}  // namespace GCEXT_ISA
}  // namespace gcext
