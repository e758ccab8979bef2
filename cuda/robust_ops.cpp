// The operator of csrc/robust.cpp on CUDA.
#include <algorithm>

#include "../csrc/common/arguments.h"
#include "device.h"
#include "robust_launch.h"

namespace gcext {
namespace {

Tensor trimmed_mean(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
                    int64_t drop, int64_t numel, const std::vector<double>&,
                    const std::optional<std::vector<Tensor>>&, const std::vector<int64_t>&,
                    const std::vector<int64_t>&,
                    const std::vector<int64_t>&) {  // of codes: on CUDA values are float32
  check_drop(drop, value.size());
  GCEXT_CHECK(value.size() <= kRobustPackets, "trimmed_mean: on CUDA takes at most ",
              +kRobustPackets, " packets, got ", value.size(), ". Move them to the CPU.");
  const Tensor& like = value[0];
  std::vector<PacketView> views = views_on_device("trimmed_mean", index, value, numel, like);
  const auto sparse = std::stable_partition(views.begin(), views.end(),
                                            [](const PacketView& each) { return each.dense; });
  std::vector<WeightedPacket> packets;
  for (const PacketView& each : views) packets.push_back({each, 0});
  const CurrentStream stream(like);
  Tensor out = empty(numel, ScalarType::Float, like);
  if (numel == 0) return out;
  const int64_t m = static_cast<int64_t>(packets.size());
  Tensor scratch = empty(m * static_cast<int64_t>(sizeof(WeightedPacket)), ScalarType::Byte, like);
  const RobustLaunch args{packets.data(),
                          sparse - views.begin(),
                          m,
                          drop,
                          numel,
                          out.mutable_data_ptr<float>(),
                          static_cast<WeightedPacket*>(scratch.mutable_data_ptr()),
                          kRobustBlocks};
  check_launch("trimmed_mean", launch_trimmed_mean(args, stream));
  return out;
}

}  // namespace

GCEXT_KERNEL(CUDA, trimmed_mean)

}  // namespace gcext
