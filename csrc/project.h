// project: the coefficients of the projection against conflicts, from dot products alone.
//
// FedFV (Wang et al. 2021, Algorithms 2 and 3). Everything it makes is a combination of the updates
// x_0 .. x_{M-1}, of which the first m are this round's, sorted by loss, so a vector c is its
// coefficients, and its products with all updates are a row of their own:
//
//   c = sum_j change_j*x_j        along_j = c.x_j        c - s*x_i:  change_i -= s
//                                                                    along_j -= s*dots_ij
//
//   1. Internal: each of the first m - kept updates meets the others i in their order; where
//      along_i < 0, c -= (along_i/dots_ii)*x_i. Products with those already met are not needed
//      again, so a meeting costs m - i. mean = the sum of all c, kept ones as they are, over m.
//   2. External: for each span of updates, h is the sum of those in conflict with the mean; where
//      mean.h < 0, mean -= (mean.h/h.h)*h.
//   3. Length: mean *= sqrt(|sum of x_j, j < m|^2/m^2 / |mean|^2). What is left of terms that
//      cancel is rounding, not a direction: where |mean|^2 <= 2^-48*(sum_j |mean_j|*|x_j|)^2 the
//      answer is zero.
//
// Cost: m^3/2 multiplications at most (where all conflict), and the M^2 numbers read once.
//
// float64, each product and sum rounded; vectors run over elements, and every sum over updates is
// in their order, but for step 1's: over the rows of a block of kProjectRows in order, then over
// the blocks. So the bits depend on neither threads nor instruction set.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace gcext {

// Rows that meet an update together, so that its products are loaded once for all of them: with
// 1,000 updates 64 KB, in the second-level cache.
constexpr int64_t kProjectRows = 8;

struct ProjectTable {
  // Step 1 for `rows` updates from `first` on: along is rows*m, change the sum of theirs, all zeros
  // before. dots has rows of `size`.
  void (*meet)(const double* dots, int64_t size, int64_t m, int64_t first, int64_t rows,
               double* along, double* change);
  // sum_j += weight*row_j
  void (*add)(const double* row, int64_t n, double weight, double* sum);
};

GCEXT_DECLARE_TABLE(ProjectTable, project_table)

}  // namespace gcext
