// select_chunks on CUDA: the sequence of launches. Steps as numbered in select_chunks.cuh.
#include "select_chunks.cuh"

namespace gcext {
namespace {

int64_t before_bytes(const Chunks& chunks) { return (chunks.count() + 1) * 8; }

}  // namespace

int64_t select_chunks_scratch_bytes(const Chunks& chunks) {
  return static_cast<int64_t>(sizeof(ChunkState)) + before_bytes(chunks) +
         chunks.capacity() * static_cast<int64_t>(sizeof(Chosen));
}

cudaError_t launch_select_chunks(const SelectChunksLaunch& args, cudaStream_t stream) {
  ChunkScratch scratch = {static_cast<ChunkState*>(args.scratch), nullptr, nullptr};
  scratch.before = reinterpret_cast<uint64_t*>(scratch.state + 1);
  scratch.chosen = reinterpret_cast<Chosen*>(scratch.before + args.chunks.count() + 1);
  const int64_t blocks = blocks_for(args.chunks.count(), 1, args.max_blocks);
  GCEXT_LAUNCH(chunks_clear_kernel, 1, kChunkThreads, stream, scratch.state);
  if (args.in_place) {
    const int64_t wide = blocks_for(args.chunks.n, kChunkThreads, args.max_blocks);
    GCEXT_LAUNCH(chunks_check_kernel, wide, kChunkThreads, stream, args.source.tensor,
                 args.chunks.n, scratch.state);
  }
  GCEXT_LAUNCH(chunks_choose_kernel, blocks, kChunkThreads, stream, args, scratch);
  GCEXT_LAUNCH(chunks_settle_kernel, 1, kChunkThreads, stream, args, scratch);
  GCEXT_LAUNCH(chunks_emit_kernel, blocks, kChunkThreads, stream, args, scratch);
  return cudaSuccess;
}

}  // namespace gcext
