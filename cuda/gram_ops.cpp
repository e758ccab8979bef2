// The operator of csrc/gram/gram.cpp on CUDA.
#include "../csrc/common/arguments.h"
#include "device.h"
#include "gram_launch.h"

namespace gcext {
namespace {

Tensor gram(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
            const std::vector<double>& scale, int64_t numel,
            const std::optional<std::vector<Tensor>>&, const std::vector<int64_t>&,
            const std::vector<int64_t>&,
            const std::vector<int64_t>&) {  // of codes: on CUDA values are float32
  const size_t m = value.size();
  GCEXT_CHECK(m > 0 && m <= kGramPackets && index.size() == m && scale.size() == m,
              "gram: on CUDA needs 1 to ", kGramPackets,
              " packets, an index and a scale each, got ", m, ", ", index.size(), " and ",
              scale.size(), ".");
  const std::vector<PacketView> views = views_on_device("gram", index, value, numel, value[0]);
  std::vector<WeightedPacket> packets(m);
  for (size_t i = 0; i < m; ++i) {
    packets[i] = {views[i], scale[i]};
    check_gram_scale(scale[i], views[i].dense);
  }
  const CurrentStream stream(value[0]);
  const int64_t count = static_cast<int64_t>(m);
  Tensor out =
      torch::stable::empty({count, count}, ScalarType::Double, std::nullopt, value[0].device());
  Tensor scratch = empty(gram_scratch_bytes(count), ScalarType::Byte, value[0]);
  const GramLaunch args{
      packets.data(), count, numel, out.mutable_data_ptr<double>(), scratch.mutable_data_ptr(),
      kGramBlocks};
  check_launch("gram", launch_gram(args, stream));
  return out;
}

}  // namespace

GCEXT_KERNEL(CUDA, gram)

}  // namespace gcext
