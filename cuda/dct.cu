// dct on CUDA: the sequences of launches. Steps as numbered in dct.cuh.
#include "dct.cuh"

namespace gcext {
namespace {

constexpr int64_t kPrepareBlocks = 4 * kDctArea / kDctThreads;

}  // namespace

int64_t dct_select_scratch_bytes(const DctGrid& grid, int64_t k) {
  return static_cast<int64_t>(sizeof(DctState) + sizeof(DctBases)) +
         grid.blocks() * (8 + k * static_cast<int64_t>(sizeof(int64_t) + sizeof(float)));
}

cudaError_t launch_dct_select(const DctSelectLaunch& args, cudaStream_t stream) {
  const int64_t all = args.grid.blocks(), blocks = blocks_for(all, 1, args.max_blocks);
  DctState* state = static_cast<DctState*>(args.scratch);
  DctBases* bases = reinterpret_cast<DctBases*>(state + 1);
  DctChosen chosen{};
  chosen.index = reinterpret_cast<int64_t*>(bases + 1);
  chosen.end = chosen.index + all * args.k;
  chosen.value = reinterpret_cast<float*>(chosen.end + all);
  chosen.k = args.k;
  GCEXT_LAUNCH(dct_prepare_kernel, kPrepareBlocks, kDctThreads, stream, args.grid, bases, state);
  GCEXT_LAUNCH(dct_choose_kernel, blocks, kDctThreads, stream, args.source, args.grid, args.ternary,
               bases, chosen, state);
  GCEXT_LAUNCH(dct_report_kernel, 1, 1, stream, args.ternary, state, args.info);
  GCEXT_LAUNCH(dct_emit_kernel, blocks, kDctThreads, stream, args.grid, chosen, state, args.info,
               args.index, args.wide, args.value);
  if (args.source.out == nullptr) return cudaSuccess;
  GCEXT_LAUNCH(dct_subtract_kernel, blocks, kDctThreads, stream, args.source, args.n, args.grid,
               bases, chosen, state, args.info);
  return cudaSuccess;
}

int64_t dct_values_scratch_bytes() { return sizeof(DctBases); }

cudaError_t launch_dct_values(const DctValuesLaunch& args, cudaStream_t stream) {
  DctBases* bases = static_cast<DctBases*>(args.scratch);
  DctState* const none = nullptr;
  const int64_t blocks = blocks_for(args.grid.blocks(), 1, args.max_blocks);
  GCEXT_LAUNCH(dct_prepare_kernel, kPrepareBlocks, kDctThreads, stream, args.grid, bases, none);
  GCEXT_LAUNCH(dct_values_kernel, blocks, kDctThreads, stream, args, bases);
  return cudaSuccess;
}

}  // namespace gcext
