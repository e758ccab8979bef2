// select on CUDA: the sequence of launches. Steps as numbered in select.cuh.
#include "select.cuh"

namespace gcext {
namespace {

// A block is worth starting for this many elements.
constexpr int64_t kElementsPerBlock = 8 * kSelectThreads;

}  // namespace

int64_t select_scratch_bytes() { return sizeof(SelectState) + kSelectBlocks * sizeof(BlockCounts); }

cudaError_t launch_select(const SelectLaunch& args, cudaStream_t stream) {
  const Source& source = args.source;
  const int64_t n = args.n;
  SelectState* state = static_cast<SelectState*>(args.scratch);
  BlockCounts* counts = reinterpret_cast<BlockCounts*>(state + 1);
  const int64_t wanted = ceil_div(n, kElementsPerBlock);
  const int64_t blocks = wanted < args.max_blocks ? wanted : args.max_blocks;

  GCEXT_LAUNCH(select_clear_kernel, 1, kSelectThreads, stream, state, args.info, args.k);
  if (args.k == 0) return cudaSuccess;
  if (args.in_place) {
    GCEXT_LAUNCH(select_check_kernel, blocks, kSelectThreads, stream, source.tensor, n, state);
  }
  GCEXT_LAUNCH(select_accumulate_kernel, blocks, kSelectThreads, stream, source, n, args.in_place,
               state);
  GCEXT_LAUNCH(select_judge_kernel, 1, 1, stream, source.out != nullptr, state, args.info);
  for (int round = 0; round < kRounds; ++round) {
    GCEXT_LAUNCH(select_histogram_kernel, blocks, kSelectThreads, stream, source, n, round, state);
    GCEXT_LAUNCH(select_digit_kernel, 1, kSelectThreads, stream, round, state);
  }
  GCEXT_LAUNCH(select_tally_kernel, blocks, kSelectThreads, stream, source, n, state, counts);
  GCEXT_LAUNCH(select_offsets_kernel, 1, kSelectThreads, stream, blocks, state, counts, args.info);
  const SelectOutput to{args.index, args.wide, args.ternary, args.value};
  GCEXT_LAUNCH(select_emit_kernel, blocks, kSelectThreads, stream, source, n, state, counts, to);
  return cudaSuccess;
}

}  // namespace gcext
