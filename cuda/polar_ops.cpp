// The operators of csrc/polar/polar.cpp on CUDA: checks, allocation, the current stream. The
// schemas are _ops.so's. No call synchronises: that a value is not finite, or that `free` or a
// message's length is not that of frozen, is found on the device; the latter leaves the result
// unwritten.
#include <tuple>

#include "../csrc/polar/polar_code.h"
#include "device.h"
#include "polar_launch.h"

namespace gcext {
namespace {

int check_frozen(const Tensor& frozen, const Tensor& like) {
  check_dense(frozen, ScalarType::Byte, "polar: frozen");
  check_device(like, like, "polar: source");
  check_device(frozen, like, "polar: frozen");
  return polar_level(frozen.numel());
}

std::tuple<Tensor, Tensor, Tensor> polar_encode(const Tensor& source, const Tensor& frozen,
                                                int64_t free, int64_t numel, double weight,
                                                int64_t correction, bool symbols) {
  const bool soft = check_polar_source(source, numel);
  check_polar_steps(weight, correction);
  const int levels = check_frozen(frozen, source);
  GCEXT_CHECK(free >= 0 && free <= frozen.numel(),
              "polar: free must be the number of zeros in frozen, got ", free, ".");
  const CurrentStream stream(source);
  const PolarGroups groups(numel, frozen.numel());
  const int64_t blocks = polar_blocks(groups);
  Tensor message = empty(groups.message_bytes(free), ScalarType::Byte, source);
  Tensor packed = empty(symbols ? (numel + 7) / 8 : 0, ScalarType::Byte, source);
  Tensor bad = empty(1, ScalarType::Long, source);
  Tensor scratch = empty(polar_scratch_bytes(groups, blocks), ScalarType::Byte, source);
  const void* from = source.const_data_ptr();
  const PolarEncodeLaunch args{soft ? static_cast<const float*>(from) : nullptr,
                               soft ? nullptr : static_cast<const uint8_t*>(from),
                               frozen.const_data_ptr<uint8_t>(),
                               groups,
                               levels,
                               free,
                               weight,
                               static_cast<int>(correction),
                               message.mutable_data_ptr<uint8_t>(),
                               symbols ? packed.mutable_data_ptr<uint8_t>() : nullptr,
                               bad.mutable_data_ptr<int64_t>(),
                               scratch.mutable_data_ptr(),
                               blocks};
  check_launch("polar", launch_polar_encode(args, stream));
  return {message, bad, packed};
}

Tensor polar_decode(const Tensor& message, const Tensor& frozen, int64_t numel) {
  check_dense(message, ScalarType::Byte, "polar: message");
  GCEXT_CHECK(numel >= 0, "polar: numel must not be negative, got ", numel, ".");
  check_frozen(frozen, message);
  const PolarGroups groups(numel, frozen.numel());
  const CurrentStream stream(message);
  const int64_t blocks = polar_blocks(groups);
  Tensor packed = empty((numel + 7) / 8, ScalarType::Byte, message);
  Tensor scratch = empty(polar_scratch_bytes(groups, blocks), ScalarType::Byte, message);
  const PolarDecodeLaunch args{message.const_data_ptr<uint8_t>(),
                               message.numel(),
                               frozen.const_data_ptr<uint8_t>(),
                               groups,
                               packed.mutable_data_ptr<uint8_t>(),
                               scratch.mutable_data_ptr(),
                               blocks};
  check_launch("polar", launch_polar_decode(args, stream));
  return packed;
}

Tensor polar_pack(const Tensor& symbols) {
  check_dense(symbols, ScalarType::Byte, "polar: symbols");
  const CurrentStream stream(symbols);
  const int64_t n = symbols.numel();
  Tensor packed = empty((n + 7) / 8, ScalarType::Byte, symbols);
  check_launch("polar", launch_polar_pack(symbols.const_data_ptr<uint8_t>(), n,
                                          packed.mutable_data_ptr<uint8_t>(), stream));
  return packed;
}

Tensor polar_unpack(const Tensor& packed, int64_t numel) {
  check_polar_packed(packed, numel);
  const CurrentStream stream(packed);
  Tensor symbols = empty(numel, ScalarType::Byte, packed);
  check_launch("polar", launch_polar_unpack(packed.const_data_ptr<uint8_t>(), numel,
                                            symbols.mutable_data_ptr<uint8_t>(), stream));
  return symbols;
}

}  // namespace

GCEXT_KERNEL(CUDA, polar_encode)
GCEXT_KERNEL(CUDA, polar_decode)
GCEXT_KERNEL(CUDA, polar_pack)
GCEXT_KERNEL(CUDA, polar_unpack)

}  // namespace gcext
