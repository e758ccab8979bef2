// The operators of csrc/select/select.cpp on CUDA: checks, allocation, the current stream. The
// schemas are _ops.so's. No call synchronises: what the device finds wrong is in info.
#include <tuple>

#include "../csrc/common/arguments.h"
#include "device.h"
#include "select_launch.h"

namespace gcext {
namespace {

// Selects from every tensor, pairs one after another; `info` has a row for each. Scratch is freed
// here safely: torch's allocator hands it out again in the order of the stream.
std::tuple<Tensor, Tensor, Tensor> select_all(const char* op, const std::vector<SelectArgs>& args,
                                              bool ternary, const Tensor& like, bool many) {
  const SelectSchedule how;
  const int64_t m = static_cast<int64_t>(args.size()), entries = total_k(args);
  const bool wide = args[0].wide;
  const CurrentStream stream(like);
  Tensor index = empty(entries, wide ? ScalarType::Long : ScalarType::Int, like);
  Tensor value = empty(entries, ScalarType::Float, like);
  Tensor info =
      many ? torch::stable::empty({m, kInfoSize}, ScalarType::Long, std::nullopt, like.device())
           : empty(kInfoSize, ScalarType::Long, like);
  char* index_at = static_cast<char*>(index.mutable_data_ptr());
  float* value_at = value.mutable_data_ptr<float>();
  int64_t* info_at = info.mutable_data_ptr<int64_t>();
  std::vector<SelectItem> items;
  items.reserve(args.size());
  for (const SelectArgs& each : args) {
    items.push_back({each.source, each.n, each.k, index_at, value_at, info_at, each.next,
                     each.in_place, ternary, wide});
    index_at += each.k * (wide ? 8 : 4);
    value_at += each.k;
    info_at += kInfoSize;
  }
  const int64_t bytes = select_scratch_bytes(items.data(), m, how);
  std::optional<Tensor> scratch;
  if (bytes > 0) scratch = empty(bytes, ScalarType::Byte, like);
  check_launch(op, launch_select(items.data(), m, scratch ? scratch->mutable_data_ptr() : nullptr,
                                 how, stream));
  return {index, value, info};
}

std::tuple<Tensor, Tensor, Tensor> select(const Tensor& tensor, const std::optional<Tensor>& memory,
                                          const std::optional<Tensor>& out, int64_t k, double a,
                                          double b, bool ternary, const std::optional<Tensor>& sent,
                                          const std::optional<Tensor>& next) {
  const SelectArgs args = select_args(tensor, memory, out, k, a, b, sent, next);
  check_devices("select", tensor, {&memory, &out, &sent, &next});
  return select_all("select", {args}, ternary, tensor, false);
}

std::tuple<Tensor, Tensor, Tensor> select_many(const std::vector<Tensor>& tensor,
                                               const std::vector<Tensor>& memory,
                                               const std::vector<Tensor>& out,
                                               const std::vector<int64_t>& k, double a, double b,
                                               bool ternary, const std::vector<Tensor>& sent,
                                               const std::vector<Tensor>& next) {
  const std::vector<SelectArgs> args = select_args(tensor, memory, out, k, a, b, sent, next);
  for (const auto* each : {&tensor, &memory, &out, &sent, &next}) {
    for (const Tensor& one : *each) check_device(one, tensor[0], "select_many: every tensor");
  }
  return select_all("select_many", args, ternary, tensor[0], true);
}

Tensor select_rest(const Tensor& memory, const Tensor& sent) {
  check_dense(memory, ScalarType::Float, "select_rest: memory");
  check_sent("select_rest", sent);
  check_device(sent, memory, "select_rest: sent");
  const int64_t n = memory.numel();
  const CurrentStream stream(memory);
  Tensor rest = empty(n, ScalarType::Float, memory);
  check_launch("select_rest",
               launch_select_rest(memory.const_data_ptr<float>(), sent.const_data_ptr<int64_t>(), n,
                                  rest.mutable_data_ptr<float>(), stream));
  return rest;
}

}  // namespace

GCEXT_KERNEL(CUDA, select)
GCEXT_KERNEL(CUDA, select_rest)
GCEXT_KERNEL(CUDA, select_many)

}  // namespace gcext
