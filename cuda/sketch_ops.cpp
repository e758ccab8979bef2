// The operators of csrc/sketch.cpp on CUDA. No call synchronises: what is not finite is in info.
#include <tuple>

#include "../csrc/common/arguments.h"
#include "../csrc/common/sketch_args.h"
#include "device.h"
#include "sketch_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor> sketch(const Tensor& tensor, const std::optional<Tensor>& index,
                                  int64_t rows, int64_t cols, int64_t seed) {
  const SketchShape shape = sketch_shape(rows, cols, seed);
  const SketchElements elements = sketch_elements(tensor, index);
  if (index.has_value()) check_device(*index, tensor, "sketch: index");
  const int64_t n = tensor.numel();
  const CurrentStream stream(tensor);
  Tensor table = empty(shape.cells(), ScalarType::Float, tensor);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  if (n == 0) return {torch::stable::zero_(table), torch::stable::zero_(info)};
  Tensor scratch = empty(sketch_scratch_bytes(shape), ScalarType::Byte, tensor);
  const SketchLaunch args{tensor.const_data_ptr<float>(),
                          n,
                          elements,
                          shape,
                          table.mutable_data_ptr<float>(),
                          info.mutable_data_ptr<int64_t>(),
                          scratch.mutable_data_ptr(),
                          kSketchBlocks};
  check_launch("sketch", launch_sketch(args, stream));
  return {table, info};
}

Tensor sketch_query(const Tensor& table, const std::optional<Tensor>& index, int64_t numel,
                    int64_t rows, int64_t cols, int64_t seed) {
  const SketchShape shape = sketch_shape(rows, cols, seed);
  const SketchElements elements = sketch_asked(table, index, numel, shape);
  if (index.has_value()) check_device(*index, table, "sketch_query: index");
  const int64_t n = index.has_value() ? index->numel() : numel;
  const CurrentStream stream(table);
  Tensor estimate = empty(n, ScalarType::Float, table);
  const SketchQuery args{table.const_data_ptr<float>(), elements, shape, n,
                         estimate.mutable_data_ptr<float>()};
  check_launch("sketch_query", launch_sketch_query(args, kSketchBlocks, stream));
  return estimate;
}

}  // namespace

GCEXT_KERNEL(CUDA, sketch)
GCEXT_KERNEL(CUDA, sketch_query)

}  // namespace gcext
