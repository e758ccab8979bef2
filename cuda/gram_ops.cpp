// The operator of csrc/gram.cpp on CUDA. Indices are not looked at, which would have to wait for
// the device: the kernels pass over one out of its place.
#include <cmath>

#include "../csrc/packet.h"
#include "device.h"
#include "gram_launch.h"

namespace gcext {
namespace {

Tensor gram(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
            const std::vector<double>& scale, int64_t numel) {
  const size_t m = value.size();
  GCEXT_CHECK(m > 0 && m <= kGramPackets && index.size() == m && scale.size() == m,
              "gram: on CUDA needs 1 to ", kGramPackets,
              " packets, an index and a scale each, got ", m, ", ", index.size(), " and ",
              scale.size(), ".");
  std::vector<WeightedPacket> packets(m);
  for (size_t i = 0; i < m; ++i) {
    check_device(value[i], value[0], "gram");
    if (index[i].numel() > 0) check_device(index[i], value[0], "gram");
    packets[i] = {view_packet("gram", index[i], value[i], numel), scale[i]};
    GCEXT_CHECK(
        std::isfinite(scale[i]) && scale[i] >= 0 && (scale[i] == 0 || !packets[i].packet.dense),
        "gram: a scale must be finite and not negative, and 0 for a dense packet, got ", scale[i],
        ". Pass 0 for a packet that is not ternary.");
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

STABLE_TORCH_LIBRARY_IMPL(gcext, CUDA, m) { m.impl("gram", TORCH_BOX(&gram)); }

}  // namespace gcext
