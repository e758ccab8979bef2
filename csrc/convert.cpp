#include "convert.h"

#include "common/pool.h"
#include "common/stable.h"

namespace gcext {
namespace {

constexpr int64_t kGrain = 32768;  // elements that are worth a thread

Tensor to_float32(const Tensor& tensor) {
  const ScalarType dtype = tensor.scalar_type();
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  check_dense(tensor, half ? dtype : ScalarType::Double, "to_float32: tensor");
  const int64_t n = tensor.numel();
  Tensor out = pooled_empty(n, ScalarType::Float);
  float* const to = out.mutable_data_ptr<float>();
  const void* const from = tensor.const_data_ptr();
  const ConvertTable& table = GCEXT_TABLE(convert_table);
  const int64_t parts = parts_for(n, kGrain);
  parallel_parts(parts, [&](int64_t part) {
    const int64_t begin = n * part / parts, count = n * (part + 1) / parts - begin;
    if (half) {
      const Halves halves{static_cast<const uint8_t*>(from), dtype == ScalarType::BFloat16};
      table.widen(halves, begin, count, to + begin);
    } else {
      table.narrow(static_cast<const double*>(from) + begin, count, to + begin);
    }
  });
  return out;
}

}  // namespace

GCEXT_OPERATOR(CPU, to_float32, "(Tensor tensor) -> Tensor")

}  // namespace gcext
