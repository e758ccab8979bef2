// Bodies of support.h for one instruction set: a plain loop that the compiler turns into vectors.
#include "support.h"

namespace gcext::GCEXT_ISA {
namespace {

void step(const SupportPermutation& permutation, int64_t n, uint64_t* x) {
  const SupportPermutation own = permutation;  // that no store to x can change
  for (int64_t i = 0; i < n; ++i) x[i] = own.step(x[i]);
}

}  // namespace

const SupportTable support_table = {step};

}  // namespace gcext::GCEXT_ISA
