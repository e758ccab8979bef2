// The operator of csrc/chunks/bin_means.cpp on CUDA: checks, allocation, the current stream. The
// schema is _ops.so's. The call does not synchronise: how many values there are is in info.
#include <tuple>

#include "../csrc/chunks/arguments.h"
#include "bin_means_launch.h"
#include "device.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor> bin_means(const Tensor& index, const Tensor& value, const Tensor& info,
                                     const std::optional<Tensor>& out, int64_t bits, double range) {
  check_bin_means(index, value, info, out, bits, range);
  for (const Tensor* each : {&index, &value, &info})
    check_device(*each, value, "bin_means: index, value and info");
  if (out.has_value()) check_device(*out, value, "bin_means: out");
  const CurrentStream stream(value);
  const int64_t capacity = value.numel();
  Tensor table = empty(int64_t{1} << bits, ScalarType::Float, value);
  Tensor packed = empty(bin_bytes(capacity, bits), ScalarType::Byte, value);
  Tensor scratch =
      empty(bin_means_scratch_bytes(capacity, static_cast<int>(bits)), ScalarType::Byte, value);
  const BinMeansLaunch args{
      index.const_data_ptr(),          index.scalar_type() == ScalarType::Long,
      value.const_data_ptr<float>(),   capacity,
      info.const_data_ptr<int64_t>(),  out.has_value() ? out->mutable_data_ptr<float>() : nullptr,
      static_cast<int>(bits),          range,
      table.mutable_data_ptr<float>(), packed.mutable_data_ptr<uint8_t>(),
      scratch.mutable_data_ptr(),      kBinMeansBlocks};
  check_launch("bin_means", launch_bin_means(args, stream));
  return {table, packed};
}

}  // namespace

GCEXT_KERNEL(CUDA, bin_means)

}  // namespace gcext
