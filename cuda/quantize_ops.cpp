// The operators of csrc/quantize.cpp on CUDA, and how levels become values again. No call
// synchronises: how many levels there are is in info, and at and level have a capacity of all
// elements.
#include <tuple>

#include "../csrc/common/arguments.h"
#include "device.h"
#include "quantize_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor> sign(const Tensor& tensor, const std::optional<Tensor>& memory,
                                const std::optional<Tensor>& out, double decay,
                                const std::optional<Tensor>& sent,
                                const std::optional<Tensor>& next) {
  check_devices("sign", tensor, {&memory, &out, &sent, &next});
  int64_t* next_at = nullptr;
  const Source source = sign_args(tensor, memory, out, decay, sent, next, next_at);
  const int64_t n = tensor.numel();
  const CurrentStream stream(tensor);
  Tensor bits = empty((n + 7) / 8, ScalarType::Byte, tensor), info = info_for(n, tensor);
  if (n == 0) return {bits, info};
  Tensor scratch = empty(sign_scratch_bytes(), ScalarType::Byte, tensor);
  check_launch("sign", launch_sign({source, n, bits.mutable_data_ptr<uint8_t>(),
                                    info.mutable_data_ptr<int64_t>(), next_at,
                                    scratch.mutable_data_ptr(), kQuantizeBlocks},
                                   stream));
  return {bits, info};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> levels(const Tensor& tensor,
                                                  const std::optional<Tensor>& memory,
                                                  const std::optional<Tensor>& out, double decay,
                                                  int64_t steps, int64_t bucket, bool largest,
                                                  double clip, bool fit, int64_t seed) {
  check_devices("levels", tensor, {&memory, &out});
  const Source source = quantize_args(tensor, memory, out, decay);
  check_levels(steps, bucket);
  const int64_t n = tensor.numel();
  const bool wide = n > INT32_MAX;
  const CurrentStream stream(tensor);
  if (bucket == 0 || bucket > n) bucket = n;
  Tensor norms = empty(n == 0 ? 0 : (n - 1) / bucket + 1, ScalarType::Float, tensor);
  Tensor at = empty(n, wide ? ScalarType::Long : ScalarType::Int, tensor);
  Tensor level = empty(n, ScalarType::Short, tensor), info = info_for(n, tensor);
  if (n == 0) return {norms, at, level, info};
  Tensor scratch = empty(levels_scratch_bytes(n, bucket), ScalarType::Byte, tensor);
  const LevelRule rule{mixed(static_cast<uint64_t>(seed)), static_cast<int32_t>(steps)};
  check_launch("levels", launch_levels({source,
                                        n,
                                        bucket,
                                        {largest, clip},
                                        fit,
                                        rule,
                                        norms.mutable_data_ptr<float>(),
                                        at.mutable_data_ptr(),
                                        wide,
                                        level.mutable_data_ptr<int16_t>(),
                                        info.mutable_data_ptr<int64_t>(),
                                        scratch.mutable_data_ptr(),
                                        kQuantizeBlocks},
                                       stream));
  return {norms, at, level, info};
}

Tensor level_values(const Tensor& norms, const Tensor& at, const Tensor& level, int64_t bucket,
                    int64_t steps) {
  check_level_values(norms, at, level, bucket, steps);
  for (const Tensor* each : {&norms, &at, &level})
    check_device(*each, level, "level_values: norms, at and level");
  const int64_t n = level.numel();
  const CurrentStream stream(level);
  Tensor value = empty(n, ScalarType::Float, level);
  const LevelValues args{norms.const_data_ptr<float>(),
                         norms.numel(),
                         bucket,
                         at.const_data_ptr(),
                         at.scalar_type() == ScalarType::Long,
                         level.const_data_ptr<int16_t>(),
                         n,
                         static_cast<int32_t>(steps),
                         value.mutable_data_ptr<float>()};
  check_launch("level_values", launch_level_values(args, kDecodeBlocks, stream));
  return value;
}

}  // namespace

GCEXT_KERNEL(CUDA, sign)
GCEXT_KERNEL(CUDA, levels)
GCEXT_KERNEL(CUDA, level_values)

}  // namespace gcext
