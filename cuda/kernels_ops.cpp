// The operator that loads every kernel on a device: kernels.h. No stem of csrc/ has it.
#include "device.h"

namespace gcext {
namespace {

// Returns how many kernels there are.
int64_t load_kernels_on(int64_t device) {
  const torch::stable::accelerator::DeviceGuard guard(static_cast<int32_t>(device));
  load_kernels_once(static_cast<int32_t>(device));
  return static_cast<int64_t>(kernels().size());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) { m.def("load_kernels(int device) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(gcext, CompositeExplicitAutograd, m) {
  m.impl("load_kernels", TORCH_BOX(&load_kernels_on));
}

}  // namespace gcext
