// The operator of csrc/wangni.cpp on CUDA: checks, allocation, the current stream. The schema is
// _ops.so's. The call does not synchronise: how many are sent is in info, and all arrays have a
// capacity of all elements.
#include <tuple>

#include "../csrc/common/arguments.h"
#include "device.h"
#include "wangni_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> wangni(
    const Tensor& tensor, const std::optional<Tensor>& memory, const std::optional<Tensor>& out,
    double decay, double budget, int64_t seed) {
  check_devices("wangni", tensor, {&memory, &out});
  const Source source = wangni_args(tensor, memory, out, decay, budget);
  const int64_t n = tensor.numel();
  const CurrentStream stream(tensor);
  auto [wide, index, value, info] = ChosenTensors(n, n, tensor);
  auto [_, at, sent, drawn] = ChosenTensors(n, n, tensor);
  if (n == 0) return {index, value, at, sent, info, drawn};
  Tensor scratch = empty(wangni_scratch_bytes(), ScalarType::Byte, tensor);
  const WangniLaunch args{source,
                          n,
                          {budget, mixed(static_cast<uint64_t>(seed))},
                          index.mutable_data_ptr(),
                          at.mutable_data_ptr(),
                          wide,
                          value.mutable_data_ptr<float>(),
                          sent.mutable_data_ptr<float>(),
                          info.mutable_data_ptr<int64_t>(),
                          drawn.mutable_data_ptr<int64_t>(),
                          scratch.mutable_data_ptr(),
                          kWangniBlocks};
  check_launch("wangni", launch_wangni(args, stream));
  return {index, value, at, sent, info, drawn};
}

}  // namespace

GCEXT_KERNEL(CUDA, wangni)

}  // namespace gcext
