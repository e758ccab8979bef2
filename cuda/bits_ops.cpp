// The operator of bits on CUDA; on the CPU torch-free code does it, csrc/wire/pybind.cpp.
#include "bits_launch.h"
#include "device.h"

namespace gcext {
namespace {

// scales: one for each `run` values, a multiple of 8; without them `scale` serves all.
Tensor unpack_signs(const Tensor& bits, int64_t n, double scale,
                    const std::optional<Tensor>& scales, int64_t run) {
  check_device(bits, bits, "unpack_signs: bits");
  check_dense(bits, ScalarType::Byte, "unpack_signs: bits");
  GCEXT_CHECK(n >= 0 && bits.numel() == plane_bytes(n, 1),
              "unpack_signs: bits must be one for each value, got ", bits.numel(), " bytes for ", n,
              ".");
  const KernelFpEnv env;  // a scale may be denormal
  SignScale each{static_cast<float>(scale), nullptr, 0};
  if (scales.has_value()) {
    check_device(*scales, bits, "unpack_signs: scales");
    check_dense(*scales, ScalarType::Float, "unpack_signs: scales");
    const int64_t runs = scales->numel();
    GCEXT_CHECK(n == 0 || (run > 0 && run % 8 == 0 && (n - 1) / run < runs),
                "unpack_signs: scales must be one for each run of a multiple of 8 values, got ",
                runs, " for runs of ", run, ".");
    each.many = scales->const_data_ptr<float>();
    each.run = run;
  }
  const CurrentStream stream(bits);
  Tensor value = empty(n, ScalarType::Float, bits);
  check_launch("unpack_signs",
               launch_bits_unpack_signs(bits.const_data_ptr<uint8_t>(), n, each,
                                        value.mutable_data_ptr<float>(), kBitsBlocks, stream));
  return value;
}

}  // namespace

GCEXT_OPERATOR(CUDA, unpack_signs,
               "(Tensor bits, int n, float scale, Tensor? scales, int run) -> Tensor")

}  // namespace gcext
