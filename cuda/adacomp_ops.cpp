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
  check_devices("adacomp", tensor, {&memory, &out});
  const Source source = source_args("adacomp", tensor, memory, out, 1, decay);
  check_bin(bin);
  const int64_t n = tensor.numel();
  const CurrentStream stream(tensor);
  auto [wide, index, value, info] = ChosenTensors(n, n, tensor);
  if (n == 0) return {index, value, info};
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
