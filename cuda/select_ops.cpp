// The operator of csrc/select.cpp on CUDA: checks, allocation, the current stream. The schema is
// _ops.so's. The call does not synchronise: what the device finds wrong is in info, and is read
// when somebody looks.
#include <tuple>

#include "device.h"
#include "select_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor, Tensor> select(const Tensor& tensor, const std::optional<Tensor>& memory,
                                          const std::optional<Tensor>& out, int64_t k, double a,
                                          double b, bool ternary) {
  check_dense(tensor, ScalarType::Float, "select: tensor");
  check_device(tensor, tensor, "select: tensor");
  const int64_t n = tensor.numel();
  GCEXT_CHECK(k <= n && (k > 0 || (n == 0 && k == 0)), "select: k must be in [1, numel], got ", k,
              " of ", n, ".");
  for (const auto* each : {&memory, &out}) {
    if (!each->has_value()) continue;
    check_dense(**each, ScalarType::Float, "select: memory and out");
    check_device(**each, tensor, "select: memory and out");
    GCEXT_CHECK((*each)->numel() == n, "select: memory and out must have ", n,
                " elements like tensor, got ", (*each)->numel(), ".");
  }
  GCEXT_CHECK(out.has_value() || !memory.has_value(),
              "select: memory needs out. Pass where the new one goes.");

  const CurrentStream stream(tensor);
  SelectLaunch args = {};
  args.n = n;
  args.k = k;
  args.in_place = out.has_value() && !memory.has_value();
  args.ternary = ternary;
  args.wide = n > INT32_MAX;
  args.max_blocks = kSelectBlocks;
  args.source = {tensor.const_data_ptr<float>(), nullptr, nullptr, static_cast<float>(a),
                 static_cast<float>(b)};
  if (out.has_value()) {
    args.source.out = out->mutable_data_ptr<float>();
    args.source.memory = args.in_place ? args.source.out : memory->const_data_ptr<float>();
  }
  Tensor index = empty(k, args.wide ? ScalarType::Long : ScalarType::Int, tensor);
  Tensor value = empty(k, ScalarType::Float, tensor);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  Tensor scratch = empty(select_scratch_bytes(), ScalarType::Byte, tensor);
  args.index = index.mutable_data_ptr();
  args.value = value.mutable_data_ptr<float>();
  args.info = info.mutable_data_ptr<int64_t>();
  args.scratch = scratch.mutable_data_ptr();
  check_launch("select", launch_select(args, stream));
  return {index, value, info};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gcext, CUDA, m) { m.impl("select", TORCH_BOX(&select)); }

}  // namespace gcext
