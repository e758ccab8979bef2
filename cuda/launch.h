// What the launchers of this floor take: raw device pointers and a stream, no torch header and no
// kernel, so that ops.cpp, nvcc and the emulator of tests/emu read the same declarations.
//
// Every launcher only enqueues on the stream: it neither synchronises nor allocates. It returns the
// first error of a launch. None of this has run on a GPU yet: the kernels compile for every
// architecture in GCEXT_CUDA_ARCHS and are byte-identical with the CPU under the emulator, which
// knows nothing of a GPU's memory model or speed.
#pragma once

#ifdef GCEXT_CUEMU
#include "cuemu.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <cstdint>

#include "../csrc/combine.h"
#include "../csrc/select.h"

namespace gcext {

// The select of csrc/select.h. In its in-place form source.memory is source.out, and nothing is
// written where tensor is not finite; a plain top-k has neither.
struct SelectLaunch {
  Source source;
  int64_t n, k;   // 0 < k <= n, or both 0
  bool in_place;  // out is also the memory
  bool ternary;
  void* index;  // k entries, int64 if `wide`, else int32
  bool wide;
  float* value;  // k entries
  int64_t* info;
  void* scratch;       // select_scratch_bytes(), 8-byte aligned, uninitialised
  int64_t max_blocks;  // at most kSelectBlocks; the result does not depend on it
};

// A few blocks for each multiprocessor of the largest GPU; each owns a contiguous range of
// elements.
constexpr int64_t kSelectBlocks = 1024;

int64_t select_scratch_bytes();
cudaError_t launch_select(const SelectLaunch& args, cudaStream_t stream);

// A packet and its weight, as the kernel of combine finds them on the device.
struct WeightedPacket {
  PacketView packet;
  double weight;
};

// out = the weighted sum of m packets, as csrc/combine.h defines it. `packets` is host memory and
// may go once the call is back; `scratch` is device memory for m of them, 8-byte aligned.
struct CombineLaunch {
  const WeightedPacket* packets;
  int64_t m, numel;
  float* out;
  WeightedPacket* scratch;
  int64_t max_blocks;  // at most kCombineBlocks; the result does not depend on it
};

constexpr int64_t kCombineBlocks = 65536;

cudaError_t launch_combine(const CombineLaunch& args, cudaStream_t stream);
cudaError_t launch_combine_add(const PacketView& packet, float alpha, int64_t numel, float* dense,
                               int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
