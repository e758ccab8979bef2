// The operators of csrc/combine.cpp on CUDA: checks, allocation, the current stream. The schemas
// are _ops.so's.
#include "../csrc/common/arguments.h"
#include "combine_launch.h"
#include "device.h"

namespace gcext {
namespace {

Tensor combine(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
               const std::vector<double>& weights, int64_t numel, const std::vector<double>&,
               const std::optional<std::vector<Tensor>>&, const std::vector<int64_t>&,
               const std::vector<int64_t>&,
               const std::vector<int64_t>&) {  // of codes: on CUDA values are float32
  const size_t m = value.size();
  GCEXT_CHECK(m > 0 && weights.size() == m, "combine: needs a weight for every value, got ",
              weights.size(), " for ", m, ".");
  const std::vector<PacketView> views = views_on_device("combine", index, value, numel, value[0]);
  std::vector<WeightedPacket> packets(m);
  for (size_t i = 0; i < m; ++i) packets[i] = {views[i], weights[i]};
  const CurrentStream stream(value[0]);
  Tensor out = empty(numel, ScalarType::Float, value[0]);
  Tensor scratch =
      empty(static_cast<int64_t>(m * sizeof(WeightedPacket)), ScalarType::Byte, value[0]);
  const CombineLaunch args{packets.data(),
                           static_cast<int64_t>(m),
                           numel,
                           out.mutable_data_ptr<float>(),
                           static_cast<WeightedPacket*>(scratch.mutable_data_ptr()),
                           kCombineBlocks};
  check_launch("combine", launch_combine(args, stream));
  return out;
}

void combine_add_(Tensor dense, Tensor index, Tensor value, double alpha,
                  const std::optional<Tensor>& info) {
  check_dense(dense, ScalarType::Float, "combine_add_: dense");
  check_device(dense, dense, "combine_add_: dense");
  const PacketView packet = view_on_device("combine_add_", index, value, dense.numel(), dense);
  if (info.has_value()) check_device(*info, dense, "combine_add_: info");
  const CurrentStream stream(dense);
  check_launch("combine_add_", launch_combine_add({packet, static_cast<float>(alpha), dense.numel(),
                                                   dense.mutable_data_ptr<float>(), add_info(info),
                                                   kCombineAddBlocks},
                                                  stream));
}

// A launch a tensor.
void combine_add_many_(const std::vector<Tensor>& dense, const std::vector<Tensor>& index,
                       const std::vector<Tensor>& value, double alpha) {
  GCEXT_CHECK(index.size() == dense.size() && value.size() == dense.size(),
              "combine_add_many_: needs an index and a value for every tensor, got ", index.size(),
              " and ", value.size(), " for ", dense.size(), ".");
  for (size_t i = 0; i < dense.size(); ++i) combine_add_(dense[i], index[i], value[i], alpha, {});
}

}  // namespace

GCEXT_KERNEL(CUDA, combine)
GCEXT_KERNEL(CUDA, combine_add_)
GCEXT_KERNEL(CUDA, combine_add_many_)

}  // namespace gcext
