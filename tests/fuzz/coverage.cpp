// Compiled without instrumentation: it is what the instrumentation calls.
#include "coverage.h"

#include <cstdint>

namespace {

constexpr uintptr_t kEdges = uintptr_t{1} << 16;
uint8_t seen[kEdges];
bool fresh = false;

}  // namespace

extern "C" const char __executable_start;
extern "C" void __sanitizer_cov_trace_pc();
void __sanitizer_cov_trace_pc() {
  const auto at = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
                  reinterpret_cast<uintptr_t>(&__executable_start);
  uint8_t& edge = seen[(at ^ at >> 16) % kEdges];
  if (edge == 0) {
    edge = 1;
    fresh = true;
  }
}

namespace gcext::fuzz {

bool saw_new_edge() {
  const bool was = fresh;
  fresh = false;
  return was;
}

}  // namespace gcext::fuzz
