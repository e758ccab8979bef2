// The operator of csrc/bits.cpp on CUDA.
#include "../csrc/common/arguments.h"
#include "bits_launch.h"
#include "device.h"

namespace gcext {
namespace {

Tensor unpack_signs(const Tensor& bits, int64_t n, double scale,
                    const std::optional<Tensor>& scales, int64_t run) {
  check_device(bits, bits, "unpack_signs: bits");
  check_signs(bits, n, scales, run);
  const KernelFpEnv env;  // a scale may be denormal
  if (scales.has_value()) check_device(*scales, bits, "unpack_signs: scales");
  const float* const each = scales.has_value() ? scales->const_data_ptr<float>() : nullptr;
  const CurrentStream stream(bits);
  Tensor value = empty(n, ScalarType::Float, bits);
  check_launch(
      "unpack_signs",
      launch_unpack_signs(bits.const_data_ptr<uint8_t>(), n, static_cast<float>(scale), each, run,
                          value.mutable_data_ptr<float>(), kBitsBlocks, stream));
  return value;
}

}  // namespace

GCEXT_KERNEL(CUDA, unpack_signs)

}  // namespace gcext
