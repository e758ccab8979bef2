// Bodies of convert.h for one instruction set.
#include "common/widen.h"
#include "convert.h"

namespace gcext::GCEXT_ISA {
namespace {

void narrow(const double* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

}  // namespace

const ConvertTable convert_table = {narrow, widen};

}  // namespace gcext::GCEXT_ISA
