// The operator of csrc/encode_codes.cpp on CUDA. No call synchronises.
#include <tuple>

#include "../csrc/bits.h"
#include "../csrc/common/arguments.h"
#include "device.h"
#include "encode_codes_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor, Tensor> encode_codes(const Tensor& tensor,
                                                const std::optional<Tensor>& memory,
                                                const std::optional<Tensor>& out, double decay,
                                                int64_t table, int64_t width, int64_t bucket,
                                                bool random, bool fit, int64_t seed) {
  check_devices("encode_codes", tensor, {&memory, &out});
  const Source source = quantize_args(tensor, memory, out, decay);
  check_encode_codes(table, width, bucket, random, fit);
  const int64_t n = tensor.numel();
  const CodeTable kind = static_cast<CodeTable>(table);
  const int bits_each = static_cast<int>(width);
  const CurrentStream stream(tensor);
  if (bucket == 0 || bucket > n) bucket = n;
  const int64_t buckets = n == 0 ? 0 : bucket_count(n, bucket);
  Tensor scales = empty(floats_per_bucket(kind, bits_each) * buckets, ScalarType::Float, tensor);
  Tensor bits = empty(plane_bytes(n, bits_each), ScalarType::Byte, tensor);
  Tensor info = info_for(n, tensor);
  if (n == 0) return {scales, bits, info};
  Tensor scratch = empty(encode_scratch_bytes(kind, n, bucket), ScalarType::Byte, tensor);
  const EncodeLaunch args{source,
                          n,
                          bucket,
                          kind,
                          {bits_each, random, mixed(static_cast<uint64_t>(seed))},
                          fit,
                          scales.mutable_data_ptr<float>(),
                          bits.mutable_data_ptr<uint8_t>(),
                          info.mutable_data_ptr<int64_t>(),
                          scratch.mutable_data_ptr(),
                          kEncodeBlocks};
  check_launch("encode_codes", launch_encode_codes(args, stream));
  return {scales, bits, info};
}

}  // namespace

GCEXT_KERNEL(CUDA, encode_codes)

}  // namespace gcext
