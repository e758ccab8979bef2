// The operator of csrc/threshold.cpp on CUDA: checks, allocation, the current stream. The schema is
// _ops.so's. The call does not synchronise: how many are sent is in info, and index and value have
// a capacity of all elements.
#include <tuple>

#include "../csrc/common/arguments.h"
#include "device.h"
#include "threshold_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor, Tensor> threshold(const Tensor& tensor,
                                             const std::optional<Tensor>& memory,
                                             const std::optional<Tensor>& out, double decay,
                                             const Tensor& limit, int64_t scale,
                                             const std::optional<Tensor>& sent,
                                             const std::optional<Tensor>& next) {
  check_devices("threshold", tensor, {&memory, &out, &sent, &next});
  check_device(limit, tensor, "threshold");
  int64_t* next_at = nullptr;
  const Source source =
      threshold_args(tensor, memory, out, decay, limit, scale, sent, next, next_at);
  const int64_t n = tensor.numel();
  const CurrentStream stream(tensor);
  auto [wide, index, value, info] = ChosenTensors(n, n, tensor);
  if (n == 0) return {index, value, info};
  Tensor scratch = empty(threshold_scratch_bytes(), ScalarType::Byte, tensor);
  const ThresholdLaunch args{source,
                             n,
                             limit.const_data_ptr<int32_t>(),
                             static_cast<uint32_t>(scale),
                             index.mutable_data_ptr(),
                             wide,
                             value.mutable_data_ptr<float>(),
                             info.mutable_data_ptr<int64_t>(),
                             next_at,
                             scratch.mutable_data_ptr(),
                             kThresholdBlocks};
  check_launch("threshold", launch_threshold(args, stream));
  return {index, value, info};
}

}  // namespace

GCEXT_KERNEL(CUDA, threshold)

}  // namespace gcext
