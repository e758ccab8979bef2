// The operator of csrc/codes.cpp on CUDA.
#include "../csrc/common/arguments.h"
#include "codes_launch.h"
#include "device.h"

namespace gcext {
namespace {

Tensor code_values(const Tensor& bits, const Tensor& scales, int64_t n, int64_t table,
                   int64_t width, int64_t bucket) {
  for (const Tensor* each : {&bits, &scales})
    check_device(*each, bits, "code_values: bits and scales");
  check_code_values(bits, scales, n, table, width, bucket);
  const CurrentStream stream(bits);
  Tensor value = empty(n, ScalarType::Float, bits);
  const CodeValues args{bits.const_data_ptr<uint8_t>(), scales.const_data_ptr<float>(), n,
                        static_cast<CodeTable>(table),  static_cast<int>(width),        bucket,
                        value.mutable_data_ptr<float>()};
  check_launch("code_values", launch_code_values(args, kCodesBlocks, stream));
  return value;
}

}  // namespace

GCEXT_KERNEL(CUDA, code_values)

}  // namespace gcext
