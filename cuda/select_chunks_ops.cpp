// The operator of csrc/chunks/select_chunks.cpp on CUDA: checks, allocation, the current stream.
// The schema is _ops.so's. The call does not synchronise: what the device finds wrong is in info.
#include <tuple>

#include "../csrc/chunks/arguments.h"
#include "device.h"
#include "select_chunks_launch.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor, Tensor> select_chunks(const Tensor& tensor,
                                                 const std::optional<Tensor>& memory,
                                                 const std::optional<Tensor>& out, int64_t chunk,
                                                 int64_t k, int64_t last, double a, double b,
                                                 bool ternary) {
  check_devices("select_chunks", tensor, {&memory, &out});
  const Source source = source_args("select_chunks", tensor, memory, out, a, b);
  const Chunks chunks = chunk_args(tensor.numel(), chunk, k, last);
  const bool in_place = out.has_value() && !memory.has_value();
  const CurrentStream stream(tensor);
  auto [wide, index, value, info] = ChosenTensors(chunks.n, chunks.capacity(), tensor);
  if (chunks.n == 0) return {index, value, info};
  Tensor scratch = empty(select_chunks_scratch_bytes(chunks), ScalarType::Byte, tensor);
  const SelectChunksLaunch args{source,
                                chunks,
                                in_place,
                                ternary,
                                index.mutable_data_ptr(),
                                wide,
                                value.mutable_data_ptr<float>(),
                                info.mutable_data_ptr<int64_t>(),
                                scratch.mutable_data_ptr(),
                                kSelectChunksBlocks};
  check_launch("select_chunks", launch_select_chunks(args, stream));
  return {index, value, info};
}

}  // namespace

GCEXT_KERNEL(CUDA, select_chunks)

}  // namespace gcext
