// The operators of csrc/dct.cpp on CUDA. No call synchronises: how many coefficients there are is
// in info, and index and value have a capacity of k a block.
#include <tuple>

#include "../csrc/common/arguments.h"
#include "../csrc/dct_arguments.h"
#include "dct_launch.h"
#include "device.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor, Tensor> dct_select(const Tensor& tensor,
                                              const std::optional<Tensor>& memory,
                                              const std::optional<Tensor>& out, double decay,
                                              int64_t rows, int64_t cols, int64_t block, int64_t k,
                                              bool ternary) {
  check_devices("dct_select", tensor, {&memory, &out});
  const Source source = source_args("dct_select", tensor, memory, out, 1, decay);
  const int64_t n = tensor.numel();
  const DctGrid grid = dct_grid("dct_select", n, rows, cols, block);
  check_dct_k(k);
  const CurrentStream stream(tensor);
  k = dct_most(grid, k);
  auto [wide, index, value, info] = ChosenTensors(n, grid.blocks() * k, tensor);
  if (n == 0) return {index, value, info};
  Tensor scratch = empty(dct_select_scratch_bytes(grid, k), ScalarType::Byte, tensor);
  check_launch("dct_select",
               launch_dct_select({source, n, grid, k, ternary, index.mutable_data_ptr(), wide,
                                  value.mutable_data_ptr<float>(), info.mutable_data_ptr<int64_t>(),
                                  scratch.mutable_data_ptr(), kDctBlocks},
                                 stream));
  return {index, value, info};
}

Tensor dct_values(const Tensor& index, const Tensor& value, int64_t rows, int64_t cols,
                  int64_t block) {
  const int64_t numel = dct_numel("dct_values", rows, cols);
  const DctGrid grid = dct_grid("dct_values", numel, rows, cols, block);
  const PacketView packet = dct_packet(index, value);
  for (const Tensor* each : {&index, &value})
    check_device(*each, value, "dct_values: index and value");
  const CurrentStream stream(value);
  Tensor out = empty(numel, ScalarType::Float, value);
  if (numel == 0) return out;
  Tensor scratch = empty(dct_values_scratch_bytes(), ScalarType::Byte, value);
  check_launch("dct_values", launch_dct_values({grid, packet, out.mutable_data_ptr<float>(),
                                                scratch.mutable_data_ptr(), kDctBlocks},
                                               stream));
  return out;
}

}  // namespace

GCEXT_KERNEL(CUDA, dct_select)
GCEXT_KERNEL(CUDA, dct_values)

}  // namespace gcext
