// gram on CUDA: the sequence of launches. Steps as numbered in gram.cuh.
#include "gram.cuh"

namespace gcext {
namespace {

// Sums that step 3 leaves for step 4, for every block of a launch: 16 MiB in all.
constexpr int64_t kSumsPerBlock = 2048;

// The tiles that steps 3 and 4 take at a time.
int64_t tiles_at_once(int64_t m, int64_t max_blocks) {
  const int64_t fit = kSumsPerBlock * max_blocks / (m * m);
  return fit > 0 ? fit : 1;
}

// Where things are in the scratch, the rows 16-byte aligned.
struct Scratch {
  Row* rows;
  WeightedPacket* packets;
  uint64_t* count;
  PairSum* sums;
  double* tile_sum;
  int64_t* starts;
  char* end;

  Scratch(void* at, int64_t m)
      : rows(static_cast<Row*>(at)),
        packets(reinterpret_cast<WeightedPacket*>(
            rows + (m > kMeetPackets ? kMeetBlocks * rows_of(m) : 0))),
        count(reinterpret_cast<uint64_t*>(packets + m)),
        sums(reinterpret_cast<PairSum*>(count + m * m)),
        tile_sum(reinterpret_cast<double*>(sums + m * m)),
        starts(reinterpret_cast<int64_t*>(tile_sum + tiles_at_once(m, kGramBlocks) * m * m)),
        end(reinterpret_cast<char*>(starts + (tiles_at_once(m, kGramBlocks) + 1) * m)) {}
};

}  // namespace

int64_t gram_scratch_bytes(int64_t m) {
  if (m == 0) return 0;
  return Scratch(nullptr, m).end - static_cast<char*>(nullptr);
}

cudaError_t launch_gram(const GramLaunch& args, cudaStream_t stream) {
  const int64_t m = args.m;
  if (m == 0) return cudaSuccess;
  const Scratch scratch(args.scratch, m);
  if (const cudaError_t error = launch_take(args.packets, m, scratch.packets, stream);
      error != cudaSuccess)
    return error;
  int64_t ternary = 0, dense = 0;
  for (int64_t i = 0; i < m; ++i) {
    ternary += is_ternary(args.packets[i]);
    dense += args.packets[i].packet.dense;
  }
  const int64_t pair_blocks = blocks_for(m * m, kGramThreads, args.max_blocks);
  GCEXT_LAUNCH(gram_clear_kernel, pair_blocks, kGramThreads, stream, m, scratch.count,
               scratch.sums);
  if (const int64_t tiles = ceil_div(args.numel, kMeetTile); tiles > 0 && ternary > 1) {
    const int64_t most = kMeetBlocks < args.max_blocks ? kMeetBlocks : args.max_blocks;
    GCEXT_LAUNCH(gram_meet_kernel, tiles < most ? tiles : most, kGramThreads, stream,
                 scratch.packets, m, args.numel, scratch.rows, scratch.count);
  }
  const int64_t tiles = ceil_div(args.numel, kGramTile),
                at_once = tiles_at_once(m, args.max_blocks);
  for (int64_t first = 0; ternary < m && first < tiles; first += at_once) {
    const int64_t some = tiles - first < at_once ? tiles - first : at_once;
    if (dense > 0) {
      GCEXT_LAUNCH(gram_dense_kernel, blocks_for(some * side_pairs(m), 1, 16 * args.max_blocks),
                   kDenseThreads, stream, scratch.packets, m, args.numel, first, some,
                   scratch.tile_sum);
    }
    if (dense < m) {
      GCEXT_LAUNCH(gram_seek_kernel, blocks_for((some + 1) * m, kGramThreads, args.max_blocks),
                   kGramThreads, stream, scratch.packets, m, first, some, scratch.starts);
      GCEXT_LAUNCH(gram_sparse_kernel,
                   blocks_for(some * m * m * kLanes, kGramThreads, 16 * args.max_blocks),
                   kGramThreads, stream, scratch.packets, m, args.numel, first, some,
                   scratch.starts, scratch.tile_sum);
    }
    GCEXT_LAUNCH(gram_add_kernel, blocks_for(m * m * kWarp, kGramThreads, args.max_blocks),
                 kGramThreads, stream, scratch.packets, m, first, some,
                 ceil_div(tiles, kGramChunks), scratch.tile_sum, scratch.sums);
  }
  GCEXT_LAUNCH(gram_finish_kernel, pair_blocks, kGramThreads, stream, scratch.packets, m,
               scratch.count, scratch.sums, args.out);
  return cudaSuccess;
}

}  // namespace gcext
