// Ternary packets' streams as operators, on CUDA only: on the CPU they are _wire's, which is
// free of torch. Neither waits for the device; what it finds wrong is in the outputs.
#include <tuple>

#include "../csrc/common/packet.h"
#include "device.h"
#include "rice_launch.h"

namespace gcext {
namespace {

template <class Item>
Tensor scratch_of(const std::vector<Item>& items, const Tensor& like) {
  const int64_t count = static_cast<int64_t>(items.size());
  return empty(rice_scratch_bytes(items.data(), count, kRiceBlocks), ScalarType::Byte, like);
}

// info: select's, or of no elements where all of the pairs count.
Tensor pack_ternary(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
                    const std::vector<Tensor>& info, const std::vector<int64_t>& numel) {
  const size_t m = value.size();
  GCEXT_CHECK(m > 0 && index.size() == m && info.size() == m && numel.size() == m,
              "pack_ternary: needs index, value, info and numel of each packet, got ", index.size(),
              ", ", m, ", ", info.size(), " and ", numel.size(), ".");
  std::vector<PackItem> items;
  items.reserve(m);
  for (size_t i = 0; i < m; ++i) {
    check_device(value[i], value[0], "pack_ternary: value");
    check_device(index[i], value[0], "pack_ternary: index");
    check_device(info[i], value[0], "pack_ternary: info");
    check_dense(info[i], ScalarType::Long, "pack_ternary: info");
    const PacketView packet = view_packet("pack_ternary", index[i], value[i], numel[i]);
    const int64_t fields = info[i].numel();
    GCEXT_CHECK(!packet.dense && packet.k <= numel[i] && (fields == 0 || fields == kInfoSize),
                "pack_ternary: needs at most numel pairs and select's info or none, got ", packet.k,
                " of ", numel[i], " and ", fields, ".");
    PackItem item = {};
    item.index = packet.index;
    item.value = packet.value;
    item.info = fields == 0 ? nullptr : info[i].const_data_ptr<int64_t>();
    item.k = packet.k;
    item.numel = numel[i];
    item.wide = packet.wide;
    items.push_back(item);
  }
  const int64_t count = static_cast<int64_t>(m);
  const CurrentStream stream(value[0]);
  Tensor out = empty(lay_out(items.data(), count), ScalarType::Byte, value[0]);
  Tensor scratch = scratch_of(items, value[0]);
  check_launch("pack_ternary", launch_pack(items.data(), count, out.mutable_data_ptr<uint8_t>(),
                                           scratch.mutable_data_ptr(), kRiceBlocks, stream));
  return out;
}

// All of index is int64 where one of the packets needs that.
std::tuple<Tensor, Tensor, Tensor> unpack_ternary(
    const Tensor& message, const std::vector<int64_t>& begin, const std::vector<int64_t>& end,
    const std::vector<int64_t>& remainder_bytes, const std::vector<int64_t>& k,
    const std::vector<int64_t>& numel, const std::vector<int64_t>& scale) {
  check_device(message, message, "unpack_ternary: message");
  check_dense(message, ScalarType::Byte, "unpack_ternary: message");
  GCEXT_CHECK(reinterpret_cast<uintptr_t>(message.const_data_ptr()) % 4 == 0,
              "unpack_ternary: message must begin at a multiple of 4 bytes. Clone it.");
  const size_t m = k.size();
  GCEXT_CHECK(begin.size() == m && end.size() == m && remainder_bytes.size() == m &&
                  numel.size() == m && scale.size() == m,
              "unpack_ternary: needs all numbers of each of the ", m, " packets.");
  const int64_t bytes = message.numel(), count = static_cast<int64_t>(m);
  int64_t entries = 0;
  bool wide = false;
  for (size_t i = 0; i < m; ++i) {
    GCEXT_CHECK(k[i] > 0 && k[i] <= numel[i] && numel[i] <= kUnpackNumel,
                "unpack_ternary: k must be in [1, numel] and numel at most 2^52, got ", k[i],
                " of ", numel[i], ".");
    const int64_t left = end[i] - begin[i];
    GCEXT_CHECK(begin[i] >= 0 && end[i] <= bytes && k[i] / 8 < left && remainder_bytes[i] >= 0 &&
                    remainder_bytes[i] < left - k[i] / 8,
                "unpack_ternary: the streams must lie in the message. wire.locate finds them.");
    entries += k[i];
    wide = wide || numel[i] > INT32_MAX;
  }
  const CurrentStream stream(message);
  Tensor index = empty(entries, wide ? ScalarType::Long : ScalarType::Int, message);
  Tensor value = empty(entries, ScalarType::Float, message);
  Tensor wrong = empty(count, ScalarType::Long, message);
  std::vector<UnpackItem> items;
  items.reserve(m);
  int64_t at = 0;
  for (size_t i = 0; i < m; ++i) {
    items.push_back({begin[i], end[i], remainder_bytes[i], k[i], numel[i],
                     static_cast<char*>(index.mutable_data_ptr()) + at * (wide ? 8 : 4),
                     value.mutable_data_ptr<float>() + at, wrong.mutable_data_ptr<int64_t>() + i,
                     static_cast<uint32_t>(scale[i]), wide});
    at += k[i];
  }
  Tensor scratch = scratch_of(items, message);
  check_launch(
      "unpack_ternary",
      launch_unpack(items.data(), count, static_cast<const uint32_t*>(message.const_data_ptr()),
                    bytes, scratch.mutable_data_ptr(), kRiceBlocks, stream));
  return {index, value, wrong};
}

}  // namespace

GCEXT_OPERATOR(CUDA, pack_ternary,
               "(Tensor[] index, Tensor[] value, Tensor[] info, int[] numel) -> Tensor")
GCEXT_OPERATOR(CUDA, unpack_ternary,
               "(Tensor message, int[] begin, int[] end, int[] remainder_bytes, int[] k, int[] "
               "numel, int[] scale) -> (Tensor index, Tensor value, Tensor wrong)")

}  // namespace gcext
