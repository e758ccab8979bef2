// The operator of csrc/hadamard.cpp on CUDA: checks, allocation, the current stream. The schema is
// _ops.so's.
#include "../csrc/common/arguments.h"
#include "device.h"
#include "hadamard_launch.h"

namespace gcext {
namespace {

Tensor hadamard(const Tensor& values, int64_t size, int64_t seed, bool inverse) {
  check_dense(values, ScalarType::Float, "hadamard: values");
  const int64_t n = values.numel();
  const int level = hadamard_level(n, size);
  const CurrentStream stream(values);
  Tensor out = empty(n, ScalarType::Float, values);
  const HadamardLaunch args{values.const_data_ptr<float>(),
                            out.mutable_data_ptr<float>(),
                            n,
                            level,
                            mixed(static_cast<uint64_t>(seed)),
                            inverse,
                            kHadamardBlocks};
  check_launch("hadamard", launch_hadamard(args, stream));
  return out;
}

}  // namespace

GCEXT_KERNEL(CUDA, hadamard)

}  // namespace gcext
