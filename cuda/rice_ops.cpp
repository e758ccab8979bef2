// A ternary packet's streams as operators, on CUDA only: on the CPU they are _wire's, which knows
// no torch. Neither waits for the device; what it finds wrong is in the outputs.
#include <tuple>

#include "../csrc/packet.h"
#include "device.h"
#include "rice_launch.h"

namespace gcext {
namespace {

Tensor pack_ternary(const Tensor& index, const Tensor& value, const Tensor& info, int64_t numel) {
  check_device(value, value, "pack_ternary: value");
  check_device(index, value, "pack_ternary: index");
  check_device(info, value, "pack_ternary: info");
  check_dense(info, ScalarType::Long, "pack_ternary: info");
  const PacketView packet = view_packet("pack_ternary", index, value, numel);
  GCEXT_CHECK(!packet.dense && packet.k <= numel && info.numel() == kInfoSize,
              "pack_ternary: needs at most numel pairs and select's info, got ", packet.k, " of ",
              numel, " and ", info.numel(), ".");
  const CurrentStream stream(value);
  Tensor out = empty(pack_bound(packet.k, numel), ScalarType::Byte, value);
  Tensor scratch = empty(rice_scratch_bytes(), ScalarType::Byte, value);
  const PackLaunch args{packet.index,
                        packet.wide,
                        packet.value,
                        packet.k,
                        numel,
                        info.const_data_ptr<int64_t>(),
                        out.mutable_data_ptr<uint8_t>(),
                        scratch.mutable_data_ptr(),
                        kRiceBlocks};
  check_launch("pack_ternary", launch_pack(args, stream));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> unpack_ternary(const Tensor& message, int64_t begin,
                                                  int64_t remainder_bytes, int64_t k, int64_t numel,
                                                  int64_t scale) {
  check_device(message, message, "unpack_ternary: message");
  check_dense(message, ScalarType::Byte, "unpack_ternary: message");
  GCEXT_CHECK(k > 0 && k <= numel && numel <= kUnpackNumel,
              "unpack_ternary: k must be in [1, numel] and numel at most 2^52, got ", k, " of ",
              numel, ".");
  const int64_t bytes = message.numel(), left = bytes - 8 - begin;
  GCEXT_CHECK(
      begin >= 0 && remainder_bytes >= 0 && k / 8 < left && remainder_bytes < left - k / 8,
      "unpack_ternary: the streams must lie in the message. Use _wire.locate to find them.");
  GCEXT_CHECK(reinterpret_cast<uintptr_t>(message.const_data_ptr()) % 4 == 0,
              "unpack_ternary: message must begin at a multiple of 4 bytes. Clone it.");
  const CurrentStream stream(message);
  const bool wide = numel > INT32_MAX;
  Tensor index = empty(k, wide ? ScalarType::Long : ScalarType::Int, message);
  Tensor value = empty(k, ScalarType::Float, message);
  Tensor wrong = empty(1, ScalarType::Long, message);
  Tensor scratch = empty(rice_scratch_bytes(), ScalarType::Byte, message);
  const UnpackLaunch args{static_cast<const uint32_t*>(message.const_data_ptr()),
                          bytes,
                          begin,
                          remainder_bytes,
                          k,
                          numel,
                          static_cast<uint32_t>(scale),
                          index.mutable_data_ptr(),
                          wide,
                          value.mutable_data_ptr<float>(),
                          wrong.mutable_data_ptr<int64_t>(),
                          scratch.mutable_data_ptr(),
                          kRiceBlocks};
  check_launch("unpack_ternary", launch_unpack(args, stream));
  return {index, value, wrong};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) {
  m.def("pack_ternary(Tensor index, Tensor value, Tensor info, int numel) -> Tensor");
  m.def(
      "unpack_ternary(Tensor message, int begin, int remainder_bytes, int k, int numel, int scale)"
      " -> (Tensor index, Tensor value, Tensor wrong)");
}

STABLE_TORCH_LIBRARY_IMPL(gcext, CUDA, m) {
  m.impl("pack_ternary", TORCH_BOX(&pack_ternary));
  m.impl("unpack_ternary", TORCH_BOX(&unpack_ternary));
}

}  // namespace gcext
