#include "lender.h"

#include <algorithm>

namespace gcext::wire {
namespace {

Lender current;

}  // namespace

void set_lender(const Lender& lender) { current = lender; }

const Lender& lender() { return current; }

int64_t part_count(int64_t n, int64_t grain) {
  if (current.threads == nullptr || n < 2 * grain) return 1;
  return std::max<int64_t>(1, std::min(current.threads(), n / grain));
}

}  // namespace gcext::wire
