// sketch on CUDA: the sequences of launches. Steps as numbered in sketch.cuh.
#include "sketch.cuh"

namespace gcext {

int64_t sketch_scratch_bytes(const SketchShape& shape) {
  return static_cast<int64_t>(sizeof(SketchState)) + 8 * shape.cells();
}

cudaError_t launch_sketch(const SketchLaunch& args, cudaStream_t stream) {
  SketchState* state = static_cast<SketchState*>(args.scratch);
  uint64_t* sums = reinterpret_cast<uint64_t*>(state + 1);
  const int64_t cells = args.shape.cells();
  const int64_t blocks = blocks_for(args.n, kSketchThreads, args.max_blocks);
  const int64_t cell_blocks = blocks_for(cells, kSketchThreads, args.max_blocks);
  GCEXT_LAUNCH(sketch_clear_kernel, cell_blocks, kSketchThreads, stream, cells, sums, state);
  GCEXT_LAUNCH(sketch_look_kernel, blocks, kSketchThreads, stream, args.value, args.n, state);
  GCEXT_LAUNCH(sketch_add_kernel, blocks, kSketchThreads, stream, args, state, sums);
  GCEXT_LAUNCH(sketch_round_kernel, cell_blocks, kSketchThreads, stream, args, sums, state);
  GCEXT_LAUNCH(sketch_report_kernel, 1, 1, stream, args.n, state, args.info);
  return cudaSuccess;
}

cudaError_t launch_sketch_query(const SketchQuery& args, int64_t max_blocks, cudaStream_t stream) {
  if (args.n == 0) return cudaSuccess;
  const int64_t blocks = blocks_for(args.n, kSketchThreads, max_blocks);
  GCEXT_LAUNCH(sketch_query_kernel, blocks, kSketchThreads, stream, args);
  return cudaSuccess;
}

}  // namespace gcext
