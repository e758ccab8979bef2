// polar_design: the convolution, compiled once per instruction set. Every sum is made in the order
// of the format, whatever the width of the vectors: they hold sums of different t.
#include <algorithm>
#include <cstring>

#include "../common/lanes.h"
#include "polar_design.h"

namespace gcext::GCEXT_ISA {
namespace {

// Sums side by side, of which a vector has kWide.
constexpr int kBatch = 32, kWide = kNative / sizeof(double), kVectors = kBatch / kWide;
typedef double Sums __attribute__((vector_size(kNative)));

void convolve(const double* p, int r, int last, double* sum) {
  // p with zeros around it: a batch reads up to its width beyond, and adding zeros changes no bit.
  double padded[6 * kTopLlr + 2 * kBatch + 1] = {};
  double* const middle = padded + 3 * kTopLlr + kBatch;
  std::memcpy(middle - r, p - r, static_cast<size_t>(2 * r + 1) * sizeof(double));
  for (int t = -2 * r; t <= last; t += kBatch) {
    Sums total[kVectors] = {};
    const int until = std::min(r, t + kBatch - 1 + r);
    for (int v = std::max(-r, t - r); v <= until; ++v) {
      const double weight = p[v];
      for (int j = 0; j < kVectors; ++j) {
        Sums x;
        std::memcpy(&x, middle + t - v + j * kWide, sizeof x);
        total[j] += weight * x;
      }
    }
    double batch[kBatch];
    std::memcpy(batch, total, sizeof batch);
    const int n = std::min(kBatch, last - t + 1);
    std::memcpy(sum + t, batch, static_cast<size_t>(n) * sizeof(double));
  }
}

}  // namespace

const PolarDesignTable polar_design_table = {convolve};

}  // namespace gcext::GCEXT_ISA
