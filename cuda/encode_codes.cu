// encode_codes on CUDA: the sequence of launches. Steps as numbered in encode_codes.cuh.
#include "encode_codes.cuh"

namespace gcext {

int64_t encode_scratch_bytes(CodeTable table, int64_t n, int64_t bucket) {
  const Cells cells(n, bucket);
  const int64_t state = static_cast<int64_t>(sizeof(EncodeState)), buckets = cells.buckets();
  if (table == CodeTable::kValues)
    return state + (cells.per_bucket > 1 ? buckets * static_cast<int64_t>(sizeof(Sides)) : 0);
  return state + cells.count() * static_cast<int64_t>(sizeof(CellNote)) +
         buckets * static_cast<int64_t>(sizeof(float));
}

cudaError_t launch_encode_codes(const EncodeLaunch& args, cudaStream_t stream) {
  EncodeState* const state = static_cast<EncodeState*>(args.scratch);
  const Cells cells(args.n, args.bucket);
  const int64_t cell_blocks = blocks_for(cells.count() * kLanes, kEncodeThreads, args.max_blocks);
  const int64_t bucket_blocks =
      blocks_for(cells.buckets() * kWarp, kEncodeThreads, args.max_blocks);
  const int64_t element_blocks = blocks_for(args.n, kEncodeThreads, args.max_blocks);
  GCEXT_LAUNCH(encode_clear_kernel, 1, 1, stream, state);
  if (args.table == CodeTable::kValues) {
    Sides* const sums = cells.per_bucket > 1 ? reinterpret_cast<Sides*>(state + 1) : nullptr;
    const int64_t words = cells.buckets() * static_cast<int64_t>(sizeof(Sides) / 8);
    if (sums != nullptr) {
      GCEXT_LAUNCH(encode_zero_kernel, blocks_for(words, kEncodeThreads, args.max_blocks),
                   kEncodeThreads, stream, reinterpret_cast<uint64_t*>(sums), words);
    }
    GCEXT_LAUNCH(encode_sides_kernel, blocks_for(cells.count(), 1, args.max_blocks), kEncodeThreads,
                 stream, args.source, cells, sums, args.scales, state);
    GCEXT_LAUNCH(encode_report_kernel, 1, 1, stream, args.n, state, args.info);
    if (sums != nullptr) {
      GCEXT_LAUNCH(encode_means_kernel, bucket_blocks, kEncodeThreads, stream, cells, sums, state,
                   args.scales);
    }
    GCEXT_LAUNCH(encode_emit_kernel, element_blocks, kEncodeThreads, stream, args, nullptr, state);
    return cudaSuccess;
  }
  CellNote* const notes = reinterpret_cast<CellNote*>(state + 1);
  float* const tops = reinterpret_cast<float*>(notes + cells.count());
  GCEXT_LAUNCH(encode_top_kernel, cell_blocks, kEncodeThreads, stream, args.source, cells, notes,
               state);
  GCEXT_LAUNCH(encode_report_kernel, 1, 1, stream, args.n, state, args.info);
  if (args.table == CodeTable::kFloat16 || args.table == CodeTable::kBfloat16) {
    GCEXT_LAUNCH(encode_halves_kernel, element_blocks, kEncodeThreads, stream, args, state);
    return cudaSuccess;
  }
  GCEXT_LAUNCH(encode_scale_kernel, bucket_blocks, kEncodeThreads, stream, cells, notes, tops,
               args.scales);
  if (args.fit) {
    GCEXT_LAUNCH(encode_fit_kernel, cell_blocks, kEncodeThreads, stream, args.source, cells,
                 args.rule, tops, state, notes);
    GCEXT_LAUNCH(encode_fitted_kernel, bucket_blocks, kEncodeThreads, stream, cells,
                 args.rule.width, notes, state, args.scales);
  }
  GCEXT_LAUNCH(encode_emit_kernel, element_blocks, kEncodeThreads, stream, args, tops, state);
  return cudaSuccess;
}

}  // namespace gcext
