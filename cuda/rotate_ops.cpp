// The operators of csrc/rotate.cpp on CUDA: checks, allocation, the current stream. The schemas are
// _ops.so's. No call synchronises: an overflow is found on the device.
#include <tuple>

#include "../csrc/rotate_arguments.h"
#include "device.h"
#include "rotate_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor> rotate(const Tensor& values, int64_t size, int64_t least, int64_t seed) {
  check_dense(values, ScalarType::Float, "rotate: values");
  const RotateChunks chunks = rotate_chunks(values.numel(), size, least);
  const CurrentStream stream(values);
  Tensor rotated = empty(chunks.symbols(), ScalarType::Float, values);
  Tensor norm = empty(chunks.count, ScalarType::Double, values);
  check_launch("rotate",
               launch_rotate({values.const_data_ptr<float>(), chunks, static_cast<uint64_t>(seed),
                              rotated.mutable_data_ptr<float>(), norm.mutable_data_ptr<double>(),
                              kRotateBlocks},
                             stream));
  return {rotated, norm};
}

Tensor rotate_scale(const Tensor& rotated, const Tensor& symbols, const Tensor& norm,
                    const Tensor& bad, const Tensor& info, int64_t size) {
  const RotateChunks chunks = rotate_scale_args(rotated, symbols, norm, bad, info, size);
  for (const Tensor* each : {&symbols, &norm, &bad, &info})
    check_device(*each, rotated, "rotate_scale: symbols, norm, bad and info");
  const CurrentStream stream(rotated);
  Tensor scale = empty(chunks.count, ScalarType::Float, rotated);
  check_launch(
      "rotate_scale",
      launch_rotate_scale(
          {rotated.const_data_ptr<float>(), symbols.const_data_ptr<uint8_t>(),
           norm.const_data_ptr<double>(), bad.const_data_ptr<int64_t>(), chunks,
           scale.mutable_data_ptr<float>(), info.mutable_data_ptr<int64_t>(), kRotateBlocks},
          stream));
  return scale;
}

// The estimate; of scales that fit `values`, where they are given, best: those go to `fitted`.
Tensor back(const Tensor& symbols, const Tensor& scale, const RotateChunks& chunks, int64_t seed,
            const float* values, float* fitted) {
  check_device(symbols, scale, "rotate: symbols");
  const CurrentStream stream(scale);
  const bool padded = chunks.symbols() > chunks.n;
  Tensor out = empty(chunks.n, ScalarType::Float, scale);
  Tensor tail = empty(padded ? chunks.last : 0, ScalarType::Float, scale);
  check_launch("rotate", launch_rotate_back(
                             {symbols.const_data_ptr<uint8_t>(), scale.const_data_ptr<float>(),
                              chunks, static_cast<uint64_t>(seed), out.mutable_data_ptr<float>(),
                              tail.mutable_data_ptr<float>(), values, fitted, kRotateBlocks},
                             stream));
  return out;
}

std::tuple<Tensor, Tensor> rotate_fit(const Tensor& values, const Tensor& symbols,
                                      const Tensor& scale, int64_t size, int64_t least,
                                      int64_t seed) {
  check_dense(values, ScalarType::Float, "rotate_fit: values");
  check_device(values, scale, "rotate_fit: values");
  const RotateChunks chunks = rotate_back_args(symbols, scale, values.numel(), size, least);
  Tensor fitted = empty(chunks.count, ScalarType::Float, scale);
  Tensor estimate = back(symbols, scale, chunks, seed, values.const_data_ptr<float>(),
                         fitted.mutable_data_ptr<float>());
  return {fitted, estimate};
}

Tensor rotate_back(const Tensor& symbols, const Tensor& scale, int64_t numel, int64_t size,
                   int64_t least, int64_t seed) {
  const RotateChunks chunks = rotate_back_args(symbols, scale, numel, size, least);
  return back(symbols, scale, chunks, seed, nullptr, nullptr);
}

}  // namespace

GCEXT_KERNEL(CUDA, rotate)
GCEXT_KERNEL(CUDA, rotate_scale)
GCEXT_KERNEL(CUDA, rotate_fit)
GCEXT_KERNEL(CUDA, rotate_back)

}  // namespace gcext
