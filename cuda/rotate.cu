// rotate on CUDA: a launch each, of a block a chunk.
#include "rotate.cuh"

namespace gcext {
namespace {

int64_t blocks_of(const RotateChunks& chunks, int64_t most) {
  return chunks.count < most ? chunks.count : most;
}

}  // namespace

cudaError_t launch_rotate(const RotateLaunch& args, cudaStream_t stream) {
  if (args.chunks.count == 0) return cudaSuccess;
  GCEXT_LAUNCH(rotate_kernel, blocks_of(args.chunks, args.max_blocks), kRotateThreads, stream,
               args);
  return cudaSuccess;
}

cudaError_t launch_rotate_scale(const RotateScaleLaunch& args, cudaStream_t stream) {
  if (args.chunks.count == 0) return cudaSuccess;
  GCEXT_LAUNCH(rotate_scale_kernel, blocks_of(args.chunks, args.max_blocks), kRotateThreads, stream,
               args);
  return cudaSuccess;
}

cudaError_t launch_rotate_back(const RotateBackLaunch& args, cudaStream_t stream) {
  if (args.chunks.count == 0) return cudaSuccess;
  GCEXT_LAUNCH(rotate_back_kernel, blocks_of(args.chunks, args.max_blocks), kRotateThreads, stream,
               args);
  return cudaSuccess;
}

}  // namespace gcext
