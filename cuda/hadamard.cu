// hadamard on CUDA: the sequence of launches. Steps as numbered in hadamard.cuh.
#include "hadamard.cuh"

namespace gcext {

cudaError_t launch_hadamard(const HadamardLaunch& args, cudaStream_t stream) {
  if (args.n == 0) return cudaSuccess;
  const int64_t blocks = blocks_for(args.n, kHadamardTile, args.max_blocks);
  for (int pass = 0; pass < 2; ++pass) {
    // Forward: round 0's signs, then round 1's. Back: none, then round 1's, then round 0's.
    const bool signs = pass == 1 || !args.inverse, outermost = pass == 1 && args.inverse;
    GCEXT_LAUNCH(hadamard_tile_kernel, blocks, kHadamardThreads, stream, args,
                 pass == 0 ? args.from : args.to, pass, signs,
                 outermost && args.level <= kHadamardTileLevel);
    for (int done = kHadamardTileLevel; done < args.level; done += kRadix) {
      const int strides = args.level - done < kRadix ? args.level - done : kRadix;
      GCEXT_LAUNCH(hadamard_far_kernel, blocks, kHadamardThreads, stream, args, int64_t{1} << done,
                   strides, outermost && done + strides == args.level);
    }
  }
  return cudaSuccess;
}

}  // namespace gcext
