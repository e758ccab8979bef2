// polar_design: how reliable each index of a polar code is, by density evolution.
//
// A density is the probability of each LLR in [-127, 127] when the codeword is zero. The source is
// that of the test channel, for signs an LLR of +-1; through the tree go the encoder's own rules f
// (min-sum) and g (saturating). The linear correction changes the order too little to
// matter.
//
//   f:  P(+m) = p(m) (A(m) + A(m+1)) + p(-m) (B(m) + B(m+1))    A(m) = sum of p(v), v >= m
//       P(-m) = 2 (p(m) B(m) + p(-m) A(m+1))                    B(m) = sum of p(v), v <= -m
//   g:  the density of the sum of two, the tails folded onto +-127
//   error of a leaf = sum of p(v), v < 0, plus p(0)/2
//
// The error of a node bounds those below it: once it is as good as 0 or 1/2 the node is not
// followed further, and its indices share its error. Only additions and multiplications of doubles
// in a fixed order, without contraction: every platform finds the same order.
#include "polar_design.h"

#include <numeric>

#include "../common/stable.h"
#include "polar.h"

namespace gcext {
namespace {

constexpr int kTop = kTopLlr, kSize = 2 * kTop + 1;

struct Density {
  double p[kSize];
  int reach;  // p is zero beyond +-reach
  double at(int v) const { return p[v + kTop]; }
};

void check_node(const Density& in, Density* out) {
  double above = 0, below = 0;  // A(m+1), B(m+1)
  std::fill(out->p, out->p + kSize, 0.0);
  out->reach = in.reach;
  for (int m = in.reach; m > 0; --m) {
    const double plus = in.at(m), minus = in.at(-m);
    out->p[kTop + m] = plus * (plus + 2 * above) + minus * (minus + 2 * below);
    out->p[kTop - m] = 2 * (plus * (minus + below) + minus * above);
    above += plus;
    below += minus;
  }
  out->p[kTop] = in.at(0) * (2 - in.at(0));
  // The tails fall below what a double can hold.
  while (out->reach > 0 && out->at(out->reach) == 0 && out->at(-out->reach) == 0) --out->reach;
}

// leaf: an error is all that is asked of the result, and positive LLRs add nothing to that.
void variable_node(const Density& in, bool leaf, Density* out) {
  double sum[2 * kSize] = {};  // of v in [-254, 254], at v + 254
  const int r = in.reach;
  GCEXT_TABLE(polar_design_table).convolve(in.p + kTop, r, leaf ? 0 : 2 * r, sum + 2 * kTop);
  out->reach = std::min(kTop, 2 * r);
  for (int v = -kTop; v <= kTop; ++v) out->p[v + kTop] = sum[v + 2 * kTop];
  for (int v = kTop + 1; v <= 2 * kTop; ++v) {
    out->p[2 * kTop] += sum[2 * kTop + v];
    out->p[0] += sum[2 * kTop - v];
  }
}

double error_of(const Density& d) {
  double error = d.at(0) / 2;
  for (int v = 1; v <= d.reach; ++v) error += d.at(-v);
  return error;
}

constexpr double kSettled = 1e-9;

void evolve(const Density& density, int level, double* error) {
  const double here = error_of(density);
  const int64_t rows = int64_t{1} << level;
  if (level == 0 || here < kSettled || here > 0.5 - kSettled) {
    std::fill(error, error + rows, here);
    return;
  }
  Density next;
  check_node(density, &next);
  evolve(next, level - 1, error);
  variable_node(density, level == 1, &next);
  evolve(next, level - 1, error + rows / 2);
}

// Indices, the most reliable first; equal ones from the last to the first. source: int64 of shape
// (255,), the density of the source's LLRs from -127 on, in units of 2^-32.
Tensor polar_order(const Tensor& source, int64_t block) {
  const int levels = check_power_of_two("polar: block", block, 0, kMaxPolarLevel);
  check_dense(source, ScalarType::Long, "polar: source density");
  GCEXT_CHECK(source.numel() == kSize, "polar: a density must have 255 entries, got ",
              source.numel(), ".");
  const KernelFpEnv env;
  Density density = {};
  for (int v = -kTop; v <= kTop; ++v) {
    const int64_t weight = source.const_data_ptr<int64_t>()[v + kTop];
    GCEXT_CHECK(weight >= 0 && weight <= int64_t{1} << 32,
                "polar: a density must be within [0, 2^32], got ", weight, ".");
    density.p[v + kTop] = static_cast<double>(weight) / 4294967296.0;
    if (weight > 0) density.reach = std::max(density.reach, v < 0 ? -v : v);
  }
  std::vector<double> error(static_cast<size_t>(block));
  evolve(density, levels, error.data());
  Tensor order = empty(block, ScalarType::Int, source);
  int32_t* const out = order.mutable_data_ptr<int32_t>();
  std::iota(out, out + block, 0);
  std::sort(out, out + block, [&](int32_t i, int32_t j) {
    return error[i] < error[j] || (error[i] == error[j] && i > j);
  });
  return order;
}

}  // namespace

GCEXT_OPERATOR(CPU, polar_order, "(Tensor source, int block) -> Tensor")

}  // namespace gcext
