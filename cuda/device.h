// What the CUDA operators share: the current stream, checks. Kernels and launchers are free of
// torch; this header and <name>_ops.cpp connect the two.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>

#include "../csrc/common/packet.h"
#include "kernels.h"
#include "launch.h"

namespace gcext {

// Loads all kernels on a device, the current one, if that was not done yet. With the first operator
// there, as the library must not make a context (half a GB) on devices that gcext is not used on;
// where a context exists when the library is loaded, gcext._native.library calls load_kernels.
inline void load_kernels_once(int32_t device) {
  static std::atomic<uint64_t> loaded{0};  // a bit a device; from 64 on they load every time
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((loaded.load(std::memory_order_acquire) & bit) != 0) return;
  load_kernels();  // twice where two threads come first: harmless
  loaded.fetch_or(bit, std::memory_order_release);
}

// The tensor's device and its current stream, for the lifetime of the call. Scratch that the call
// frees early is safe: torch's allocator hands it out again in the order of the stream.
class CurrentStream {
 public:
  explicit CurrentStream(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
    load_kernels_once(tensor.get_device_index());
  }
  operator cudaStream_t() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline void check_launch(const char* op, cudaError_t error) {
  GCEXT_CHECK(error == cudaSuccess, op, ": the kernels must launch, got CUDA error '",
              cudaGetErrorString(error),
              "'. gcext.build_info()[\"cuda_archs\"] lists the GPUs they were built for.");
}

inline void check_device(const Tensor& tensor, const Tensor& like, const char* what) {
  GCEXT_CHECK(tensor.is_cuda() && tensor.get_device_index() == like.get_device_index(), what,
              ": tensors must be on one CUDA device. Move them with .to().");
}

// A tensor and what goes with it, of which some may be left out.
inline void check_devices(const char* op, const Tensor& tensor,
                          std::initializer_list<const std::optional<Tensor>*> others) {
  check_device(tensor, tensor, op);
  for (const auto* each : others) {
    if (each->has_value()) check_device(**each, tensor, op);
  }
}

// info for a kernel that reads n elements: of none there are no launches, and it is all zeros.
inline Tensor info_for(int64_t n, const Tensor& like) {
  Tensor info = empty(kInfoSize, ScalarType::Long, like);
  return n == 0 ? torch::stable::zero_(info) : info;
}

// What a kernel that chooses from n elements returns, with a capacity for `most` pairs.
struct ChosenTensors {
  ChosenTensors(int64_t n, int64_t most, const Tensor& like)
      : wide(n > INT32_MAX),
        index(empty(most, wide ? ScalarType::Long : ScalarType::Int, like)),
        value(empty(most, ScalarType::Float, like)),
        info(info_for(n, like)) {}

  bool wide;  // int64 indices
  Tensor index, value, info;
};

// A packet on the device of `like`. Its indices are not read, which would have to wait for the
// device: the kernels pass over one that is out of range.
inline PacketView view_on_device(const char* op, const Tensor& index, const Tensor& value,
                                 int64_t numel, const Tensor& like) {
  check_device(value, like, op);
  if (index.numel() > 0) check_device(index, like, op);
  return view_packet(op, index, value, numel);
}

// All packets of a call.
inline std::vector<PacketView> views_on_device(const char* op, const std::vector<Tensor>& index,
                                               const std::vector<Tensor>& value, int64_t numel,
                                               const Tensor& like) {
  GCEXT_CHECK(numel >= 0, op, ": numel must not be negative, got ", numel, ".");
  GCEXT_CHECK(index.size() == value.size(), op, ": needs an index for every value, got ",
              index.size(), " and ", value.size(), ".");
  std::vector<PacketView> packets;
  for (size_t i = 0; i < value.size(); ++i)
    packets.push_back(view_on_device(op, index[i], value[i], numel, like));
  return packets;
}

}  // namespace gcext
