// The operators of csrc/select.cpp on CUDA: checks, allocation, the current stream. The schemas are
// _ops.so's. No call synchronises: what the device finds wrong is in info, and is read when
// somebody looks.
#include <tuple>

#include "../csrc/select_args.h"
#include "device.h"
#include "select_launch.h"

namespace gcext {
namespace {

using Pairs = std::tuple<Tensor, Tensor, Tensor>;

SelectItem item_of(const SelectArgs& args, int64_t k, bool ternary, void* index, float* value,
                   int64_t* info) {
  return {args.source, args.n, k, index, value, info, args.in_place, ternary, args.wide};
}

// Scratch that the call frees here is safe: torch's allocator hands it out again in the order of
// the stream.
void run(const char* op, const std::vector<SelectItem>& items, const Tensor& like,
         cudaStream_t stream) {
  const SelectSchedule how;
  const int64_t count = static_cast<int64_t>(items.size());
  const int64_t bytes = select_scratch_bytes(items.data(), count, how);
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = empty(bytes, ScalarType::Byte, like);
  check_launch(op, launch_select(items.data(), count,
                                 scratch ? scratch->mutable_data_ptr() : nullptr, how, stream));
}

Pairs select(const Tensor& tensor, const std::optional<Tensor>& memory,
             const std::optional<Tensor>& out, int64_t k, double a, double b, bool ternary) {
  const SelectArgs args = select_args(tensor, memory, out, k, a, b);
  check_device(tensor, tensor, "select: tensor");
  for (const auto* each : {&memory, &out}) {
    if (each->has_value()) check_device(**each, tensor, "select: memory and out");
  }
  const CurrentStream stream(tensor);
  Tensor index = empty(k, args.wide ? ScalarType::Long : ScalarType::Int, tensor);
  Tensor value = empty(k, ScalarType::Float, tensor);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  const SelectItem item =
      item_of(args, k, ternary, index.mutable_data_ptr(), value.mutable_data_ptr<float>(),
              info.mutable_data_ptr<int64_t>());
  run("select", {item}, tensor, stream);
  return {index, value, info};
}

Pairs select_many(const std::vector<Tensor>& tensor, const std::vector<Tensor>& memory,
                  const std::vector<Tensor>& out, const std::vector<int64_t>& k, double a, double b,
                  bool ternary) {
  const std::vector<SelectArgs> args = select_args(tensor, memory, out, k, a, b);
  for (const auto* each : {&tensor, &memory, &out}) {
    for (const Tensor& one : *each) check_device(one, tensor[0], "select_many: every tensor");
  }
  const int64_t m = static_cast<int64_t>(args.size()), entries = total(k);
  const CurrentStream stream(tensor[0]);
  Tensor index = empty(entries, ScalarType::Int, tensor[0]);
  Tensor value = empty(entries, ScalarType::Float, tensor[0]);
  Tensor info =
      torch::stable::empty({m, kInfoSize}, ScalarType::Long, std::nullopt, tensor[0].device());
  std::vector<SelectItem> items;
  items.reserve(args.size());
  int64_t at = 0;
  for (int64_t i = 0; i < m; ++i) {
    items.push_back(item_of(args[i], k[i], ternary, index.mutable_data_ptr<int32_t>() + at,
                            value.mutable_data_ptr<float>() + at,
                            info.mutable_data_ptr<int64_t>() + i * kInfoSize));
    at += k[i];
  }
  run("select_many", items, tensor[0], stream);
  return {index, value, info};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gcext, CUDA, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("select_many", TORCH_BOX(&select_many));
}

}  // namespace gcext
