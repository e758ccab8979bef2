// The step of density evolution that takes its time, compiled once per instruction set; the design
// is in polar_design.cpp.
#pragma once

#include "../common/isa.h"

namespace gcext {

// Densities of LLRs in [-kTopLlr, kTopLlr].
constexpr int kTopLlr = 127;

struct PolarDesignTable {
  // sum[t] = p[-r] p[t+r] + .. + p[r] p[t-r] for t in [-2r, last], in this order: each product and
  // each addition rounded. p and sum are given by their middles; p is 0 beyond +-r, r <= kTopLlr.
  void (*convolve)(const double* p, int r, int last, double* sum);
};

GCEXT_DECLARE_TABLE(PolarDesignTable, polar_design_table)

}  // namespace gcext
