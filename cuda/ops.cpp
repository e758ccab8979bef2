// Operators of csrc/select.cpp and csrc/combine.cpp on CUDA: checks, allocation, the current
// stream. The schemas are _ops.so's. No call synchronises: what the device finds wrong is in
// select's info, and is read when somebody looks.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../csrc/packet.h"
#include "../csrc/stable.h"
#include "launch.h"

namespace gcext {
namespace {

// The tensor's device and its current stream, for the lifetime of the call. Scratch that the call
// frees early is safe: torch's allocator hands it out again in the order of the stream.
class CurrentStream {
 public:
  explicit CurrentStream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  operator cudaStream_t() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

void check_launch(const char* op, cudaError_t error) {
  GCEXT_CHECK(error == cudaSuccess, op, ": the kernels must launch, got CUDA error '",
              cudaGetErrorString(error),
              "'. gcext.build_info()[\"cuda_archs\"] says which GPUs they were built for.");
}

void check_device(const Tensor& tensor, const Tensor& like, const char* what) {
  GCEXT_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), what,
              ": must be on one CUDA device with the others. Move it with .to().");
}

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

// A packet on the device of `like`. Its indices are not looked at, which would have to wait for the
// device: the kernels pass over one out of its place.
PacketView view_on_device(const char* op, const Tensor& index, const Tensor& value, int64_t numel,
                          const Tensor& like) {
  check_device(value, like, op);
  if (index.numel() > 0) check_device(index, like, op);
  return view_packet(op, index, value, numel);
}

Tensor combine(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
               const std::vector<double>& weights, int64_t numel) {
  const size_t m = value.size();
  GCEXT_CHECK(numel >= 0, "combine: numel must not be negative, got ", numel, ".");
  GCEXT_CHECK(m > 0 && index.size() == m && weights.size() == m,
              "combine: needs an index and a weight for every value, got ", index.size(), " and ",
              weights.size(), " for ", m, ".");
  std::vector<WeightedPacket> packets(m);
  for (size_t i = 0; i < m; ++i) {
    packets[i] = {view_on_device("combine", index[i], value[i], numel, value[0]), weights[i]};
  }
  const CurrentStream stream(value[0]);
  Tensor out = empty(numel, ScalarType::Float, value[0]);
  Tensor scratch =
      empty(static_cast<int64_t>(m * sizeof(WeightedPacket)), ScalarType::Byte, value[0]);
  const CombineLaunch args{packets.data(),
                           static_cast<int64_t>(m),
                           numel,
                           out.mutable_data_ptr<float>(),
                           static_cast<WeightedPacket*>(scratch.mutable_data_ptr()),
                           kCombineBlocks};
  check_launch("combine", launch_combine(args, stream));
  return out;
}

void combine_add_(Tensor dense, Tensor index, Tensor value, double alpha) {
  check_dense(dense, ScalarType::Float, "combine_add_: dense");
  check_device(dense, dense, "combine_add_: dense");
  const PacketView packet = view_on_device("combine_add_", index, value, dense.numel(), dense);
  const CurrentStream stream(dense);
  check_launch("combine_add_",
               launch_combine_add(packet, static_cast<float>(alpha), dense.numel(),
                                  dense.mutable_data_ptr<float>(), kCombineBlocks, stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gcext, CUDA, m) {
  m.impl("select", TORCH_BOX(&select));
  m.impl("combine", TORCH_BOX(&combine));
  m.impl("combine_add_", TORCH_BOX(&combine_add_));
}

}  // namespace gcext
