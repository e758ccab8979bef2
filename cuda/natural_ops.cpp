// The operators of csrc/natural.cpp on CUDA. No call synchronises.
#include <tuple>

#include "../csrc/common/arguments.h"
#include "device.h"
#include "natural_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor> natural(const Tensor& tensor, const std::optional<Tensor>& memory,
                                   const std::optional<Tensor>& out, double decay, double scale,
                                   int64_t seed) {
  check_devices("natural", tensor, {&memory, &out});
  const Source source = quantize_args(tensor, memory, out, decay);
  const float by = check_natural_scale(scale);
  const KernelFpEnv env;  // the greatest power is found on the host
  const int64_t n = tensor.numel();
  const CurrentStream stream(tensor);
  Tensor power = empty(n, ScalarType::Short, tensor);
  Tensor info = info_for(n, tensor);
  if (n == 0) return {power, info};
  Tensor scratch = empty(natural_scratch_bytes(), ScalarType::Byte, tensor);
  const NaturalLaunch args{source,
                           n,
                           by,
                           mixed(static_cast<uint64_t>(seed)),
                           power.mutable_data_ptr<int16_t>(),
                           info.mutable_data_ptr<int64_t>(),
                           scratch.mutable_data_ptr(),
                           kNaturalBlocks};
  check_launch("natural", launch_natural(args, stream));
  return {power, info};
}

Tensor power_values(const Tensor& power, double scale) {
  check_device(power, power, "power_values: power");
  const KernelFpEnv env;  // a scale may be denormal
  const float by = check_power_values(power, scale);
  const CurrentStream stream(power);
  Tensor value = empty(power.numel(), ScalarType::Float, power);
  check_launch("power_values",
               launch_power_values(power.const_data_ptr<int16_t>(), power.numel(), by,
                                   value.mutable_data_ptr<float>(), kNaturalBlocks, stream));
  return value;
}

}  // namespace

GCEXT_KERNEL(CUDA, natural)
GCEXT_KERNEL(CUDA, power_values)

}  // namespace gcext
