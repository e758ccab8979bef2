// The operator of csrc/chunks/adacomp.cpp on CUDA: checks, allocation, the current stream. The
// schema is _ops.so's. The call does not synchronise: how many are chosen is in info, and index and
// value have a capacity of all elements.
#include <tuple>

#include "../csrc/chunks/arguments.h"
#include "adacomp_launch.h"
#include "device.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor, Tensor> adacomp(const Tensor& tensor,
                                           const std::optional<Tensor>& memory,
                                           const std::optional<Tensor>& out, double decay,
                                           int64_t bin) {
  check_device(tensor, tensor, "adacomp: tensor");
  for (const auto* each : {&memory, &out}) {
    if (each->has_value()) check_device(**each, tensor, "adacomp: memory and out");
  }
  const Source source = source_args("adacomp", tensor, memory, out, 1, decay);
  check_bin(bin);
  const int64_t n = tensor.numel();
  const bool wide = n > INT32_MAX;
  const CurrentStream stream(tensor);
  Tensor index = empty(n, wide ? ScalarType::Long : ScalarType::Int, tensor);
  Tensor value = empty(n, ScalarType::Float, tensor);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  if (n == 0) return {index, value, torch::stable::zero_(info)};
  Tensor scratch = empty(adacomp_scratch_bytes(n, bin), ScalarType::Byte, tensor);
  const AdaCompLaunch args{source,
                           n,
                           bin,
                           index.mutable_data_ptr(),
                           wide,
                           value.mutable_data_ptr<float>(),
                           info.mutable_data_ptr<int64_t>(),
                           scratch.mutable_data_ptr(),
                           kAdaCompBlocks};
  check_launch("adacomp", launch_adacomp(args, stream));
  return {index, value, info};
}

}  // namespace

GCEXT_KERNEL(CUDA, adacomp)

}  // namespace gcext
