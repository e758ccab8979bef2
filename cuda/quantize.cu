// quantize on CUDA: the sequences of launches. Steps as numbered in quantize.cuh.
#include "quantize.cuh"

namespace gcext {
int64_t sign_scratch_bytes() { return sizeof(QuantizeState); }

cudaError_t launch_sign(const SignLaunch& args, cudaStream_t stream) {
  QuantizeState* state = static_cast<QuantizeState*>(args.scratch);
  const int64_t blocks = blocks_for(args.n, kQuantizeThreads, args.max_blocks);
  GCEXT_LAUNCH(quantize_clear_kernel, 1, kQuantizeThreads, stream, state);
  GCEXT_LAUNCH(sign_tally_kernel, blocks, kQuantizeThreads, stream, args.source, args.n, args.bits,
               args.next != nullptr, state);
  GCEXT_LAUNCH(quantize_report_kernel, 1, 1, stream, true, args.n, state, args.info);
  GCEXT_LAUNCH(sign_subtract_kernel, blocks, kQuantizeThreads, stream, args.source, args.n,
               args.bits, args.next, state, args.info);
  return cudaSuccess;
}

int64_t levels_scratch_bytes(int64_t n, int64_t bucket) {
  const Cells cells(n, bucket);
  return static_cast<int64_t>(sizeof(QuantizeState)) + 8 * kQuantizeBlocks * kChosenWarps +
         cells.count() * static_cast<int64_t>(sizeof(CellSum)) +
         cells.buckets() * static_cast<int64_t>(sizeof(float));
}

cudaError_t launch_levels(const LevelsLaunch& args, cudaStream_t stream) {
  QuantizeState* state = static_cast<QuantizeState*>(args.scratch);
  uint64_t* counts = reinterpret_cast<uint64_t*>(state + 1);
  CellSum* sums = reinterpret_cast<CellSum*>(counts + kQuantizeBlocks * kChosenWarps);
  const Cells cells(args.n, args.bucket);
  float* drawn_by = args.fit ? reinterpret_cast<float*>(sums + cells.count()) : args.norms;
  const int64_t blocks = blocks_for(args.n, kQuantizeThreads, args.max_blocks);
  const int64_t cell_blocks = blocks_for(cells.count() * kLanes, kQuantizeThreads, args.max_blocks);
  const int64_t bucket_blocks =
      blocks_for(cells.buckets() * kWarp, kQuantizeThreads, args.max_blocks);
  const Source summed = kept_sums(args.source);
  GCEXT_LAUNCH(quantize_clear_kernel, 1, kQuantizeThreads, stream, state);
  GCEXT_LAUNCH(levels_cell_kernel, cell_blocks, kQuantizeThreads, stream, args.source, cells, sums,
               state);
  GCEXT_LAUNCH(levels_norm_kernel, bucket_blocks, kQuantizeThreads, stream, cells, args.norm, sums,
               drawn_by);
  GCEXT_LAUNCH(quantize_report_kernel, 1, 1, stream, false, args.n, state, args.info);
  if (args.fit) {
    FitSums* fits = reinterpret_cast<FitSums*>(sums);
    GCEXT_LAUNCH(levels_fit_kernel, cell_blocks, kQuantizeThreads, stream, summed, cells, args.rule,
                 drawn_by, state, fits);
    GCEXT_LAUNCH(levels_fitted_kernel, bucket_blocks, kQuantizeThreads, stream, cells,
                 args.rule.steps, fits, state, args.norms);
  }
  GCEXT_LAUNCH(levels_count_kernel, blocks, kQuantizeThreads, stream, summed, cells, args.rule,
               drawn_by, state, counts);
  GCEXT_LAUNCH(levels_settle_kernel, 1, kSettleThreads, stream, state, counts,
               blocks * kChosenWarps, args.info);
  GCEXT_LAUNCH(levels_emit_kernel, blocks, kQuantizeThreads, stream, args.source, summed, cells,
               args.rule, drawn_by, args.norms, state, counts,
               Pairs<int16_t>{args.at, args.wide, args.level});
  return cudaSuccess;
}

cudaError_t launch_level_values(const LevelValues& args, int64_t max_blocks, cudaStream_t stream) {
  if (args.n == 0) return cudaSuccess;
  LevelValues a = args;
  if (!a.wide && a.bucket > INT32_MAX) a.bucket = 0;  // then every place is in the first
  const int64_t blocks = blocks_for(a.n, kQuantizeThreads, max_blocks);
  if (a.wide) {
    GCEXT_LAUNCH(level_values_kernel<int64_t>, blocks, kQuantizeThreads, stream, a);
  } else {
    GCEXT_LAUNCH(level_values_kernel<int32_t>, blocks, kQuantizeThreads, stream, a);
  }
  return cudaSuccess;
}

}  // namespace gcext
