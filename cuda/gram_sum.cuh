// gram on CUDA, steps 3 and 4: the sums of the pairs that are not both ternary, tile by tile as
// csrc/gram/gram.h orders them. Eight threads a pair and tile, one for each lane of the sum, each
// in order of its elements; lanes are added by shuffles.
//
//   3. Dense: a block of threads takes 16 packets, or 16 and 16 others, and a tile of them strip by
//      strip: the next strip is under way from memory while this one, in shared memory, is used. So
//      an element is read once for up to 16 pairs of its packet, and m <= 16 packets once in all.
//      A thread has a lane of 4 x 4 pairs, 16 sums for 8 elements read:
//
//        columns c  c+w  c+2w  c+3w      w = ceil(packets / 4): the threads of a warp read packets
//        rows    r  r+w  r+2w  r+3w      side by side, which are in banks of their own
//
//      Sparse: the entries of the one with fewer, looked up in the other.
//   4. A warp a pair adds tiles to their chunk, a lane a chunk, and chunks to the dot, in order.
#pragma once

#include "gram_meet.cuh"
#include "planes.cuh"

namespace gcext {

constexpr int kSide = 16, kBlock = 4;  // packets on a side of a block of threads, of one thread
constexpr int kDenseThreads = kLanes * (kSide / kBlock) * (kSide / kBlock);
constexpr int kStrip = 4 * kWarp;
constexpr int kStripRow = kStrip + kLanes;  // neighbours are eight banks apart
constexpr int kRowsAtOnce = kDenseThreads / kWarp, kStripQuads = 2 * kSide / kRowsAtOnce;

// Running sums of a pair, between the launches.
struct PairSum {
  double dot, chunk;
};

// Packets [first, first + count) as one side of a block of pairs, in groups of w.
struct Side {
  int64_t first;
  int count, w;
};

__device__ inline Side side_at(int64_t side, int64_t m) {
  const int64_t left = m - side * kSide;
  const int count = static_cast<int>(left < kSide ? left : kSide);
  return {side * kSide, count, (count + kBlock - 1) / kBlock};
}

GCEXT_HD inline int64_t side_pairs(int64_t m) {
  const int64_t sides = ceil_div(m, kSide);
  return sides * (sides + 1) / 2;
}

// Step 3, dense packets, tiles [first, first + tiles).
__global__ void __launch_bounds__(kDenseThreads, 5)
    gram_dense_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, int64_t first,
                      int64_t tiles, double* tile_sum) {
  __shared__ float4 storage[2 * kSide * kStripRow / 4];
  __shared__ const float* values[2 * kSide];  // of the rows of a strip, null for zeros
  float* strip = reinterpret_cast<float*>(storage);
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes;
  const int64_t pairs = side_pairs(m);
  for (int64_t task = blockIdx.x; task < tiles * pairs; task += gridDim.x) {
    // Pairs of sides (0,0) (0,1) (1,1) (0,2) ..
    int64_t high = 0, low = task % pairs;
    for (; low > high; ++high) low -= high + 1;
    const Side rows = side_at(low, m), columns = side_at(high, m);
    const bool same = low == high;
    const int64_t begin = (first + task / pairs) * kGramTile, left = numel - begin;
    const int64_t size = left < kGramTile ? left : kGramTile;

    // This thread's pairs: all of (row, column), of one side with itself those with row <= column.
    int row = 0, column = group;
    for (; row < rows.w && column >= columns.w; ++row) column -= columns.w - (same ? row + 1 : 0);
    const bool mine = row < rows.w;

    if (threadIdx.x < 2 * kSide) {
      const Side side = threadIdx.x < kSide ? rows : columns;
      const int r = threadIdx.x % kSide;
      const bool used =
          r < side.count && !(same && threadIdx.x >= kSide) && packets[side.first + r].packet.dense;
      values[threadIdx.x] = used ? packets[side.first + r].packet.value + begin : nullptr;
    }
    __syncthreads();

    // A warp loads a row of the strip at a time.
    const auto load = [&](int64_t at, Quad* quads) {
      for (int q = 0; q < kStripQuads; ++q) {
        const float* from = values[q * kRowsAtOnce + threadIdx.x / kWarp];
        quads[q] = {};
        if (from != nullptr)
          quads[q] = load_quad(from, at + threadIdx.x % kWarp * 4, size, is_aligned(from));
      }
    };
    double sum[kBlock][kBlock] = {};
    Quad quads[kStripQuads];
    load(0, quads);
    for (int64_t at = 0; at < size; at += kStrip) {
      for (int q = 0; q < kStripQuads; ++q) {
        const int r = q * kRowsAtOnce + threadIdx.x / kWarp;
        store_whole_quad(strip, r * kStripRow + threadIdx.x % kWarp * 4, quads[q]);
      }
      __syncthreads();
      if (at + kStrip < size) load(at + kStrip, quads);
      const float* x = strip + row * kStripRow;
      const float* y = strip + ((same ? 0 : kSide) + column) * kStripRow;
      for (int e = lane; mine && e < kStrip; e += kLanes) {
        double a[kBlock], b[kBlock];
        for (int i = 0; i < kBlock; ++i) a[i] = x[rows.w * i * kStripRow + e];
        for (int j = 0; j < kBlock; ++j) b[j] = y[columns.w * j * kStripRow + e];
        // The product is exact, so that one rounding is the same as two.
        for (int i = 0; i < kBlock; ++i)
          for (int j = 0; j < kBlock; ++j) sum[i][j] = fma(a[i], b[j], sum[i][j]);
      }
      __syncthreads();
    }
    double* to = tile_sum + task / pairs * m * m;
    for (int n = 0; n < kBlock * kBlock; ++n) {
      const double whole = sum_of_lanes<kLanes>(sum[n / kBlock][n % kBlock]);
      const int r = row + n / kBlock * rows.w, c = column + n % kBlock * columns.w;
      if (!mine || lane != 0 || r >= rows.count || c >= columns.count) continue;
      const int64_t i = rows.first + r, j = columns.first + c;
      if (packets[i].packet.dense && packets[j].packet.dense)
        to[i < j ? i * m + j : j * m + i] = whole;
    }
  }
}

// Step 3: where the entries of tiles [first, first + tiles] begin, m a tile.
__global__ void __launch_bounds__(kGramThreads)
    gram_seek_kernel(const WeightedPacket* packets, int64_t m, int64_t first, int64_t tiles,
                     int64_t* starts) {
  for (int64_t n = grid_first(); n < (tiles + 1) * m; n += grid_stride()) {
    const PacketView& p = packets[n % m].packet;
    starts[n] = p.dense ? 0 : first_entry_from(p, (first + n / m) * kGramTile);
  }
}

__device__ inline float value_at(const PacketView& p, int64_t element, const Span& span) {
  if (p.dense) return p.value[element];
  const int64_t at = first_entry_from(p, element, span.from, span.until);
  return at < span.until && index_at(p, at) == element ? p.value[at] : 0.0f;
}

// Step 3, pairs with a sparse packet, the same tiles.
__global__ void __launch_bounds__(kGramThreads)
    gram_sparse_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, int64_t first,
                       int64_t tiles, const int64_t* starts, double* tile_sum) {
  const int lane = threadIdx.x % kLanes, eight = threadIdx.x % kWarp - lane;
  const uint32_t pairs = static_cast<uint32_t>(m * m), tasks = static_cast<uint32_t>(tiles) * pairs;
  // Whole warps go round together: every lane must come to the shuffles.
  for (int64_t round = grid_first() / kWarp * (kWarp / kLanes); round < tasks;
       round += grid_stride() / kLanes) {
    const uint32_t task = static_cast<uint32_t>(round) + eight / kLanes;
    const uint32_t tile = task / pairs, i = task % pairs / static_cast<uint32_t>(m),
                   j = task % static_cast<uint32_t>(m);
    const PacketView &x = packets[i].packet, &y = packets[j].packet;
    const bool mine = task < tasks && i <= j && !(x.dense && y.dense) &&
                      !(is_ternary(packets[i]) && is_ternary(packets[j]));
    const bool swap = x.dense || (!y.dense && y.k < x.k);
    const PacketView &few = swap ? y : x, &more = swap ? x : y;
    const auto span_of = [&](uint32_t packet) {
      const int64_t* start = starts + tile * m + packet;
      return mine ? Span{start[0], start[m]} : Span{0, 0};
    };
    const Span entries = span_of(swap ? j : i), others = span_of(swap ? i : j);
    const int64_t begin = (first + tile) * kGramTile, left = numel - begin;
    const int64_t size = left < kGramTile ? left : kGramTile;

    // Eight entries at a time, each looked up by a thread, then handed in order to their lanes.
    double sum = 0;
    for (int64_t at = entries.from + lane; __any_sync(kWholeWarp, at - lane < entries.until);
         at += kLanes) {
      double product = 0;
      int owner = 0;
      if (at < entries.until) {
        const int64_t element = index_at(few, at);
        if (element >= begin && element < begin + size) {
          product = static_cast<double>(few.value[at]) *
                    static_cast<double>(value_at(more, element, others));
          owner = static_cast<int>(element % kLanes);
        }
      }
      for (int from = eight; from < eight + kLanes; ++from) {
        const double next = __shfl_sync(kWholeWarp, product, from);
        if (__shfl_sync(kWholeWarp, owner, from) == lane) sum += next;
      }
    }
    sum = sum_of_lanes<kLanes>(sum);
    if (mine && lane == 0) tile_sum[task] = sum;
  }
}

// Step 4, the same tiles, `step` of them in a chunk. Pairs that are not summed are left alone.
__global__ void __launch_bounds__(kGramThreads)
    gram_add_kernel(const WeightedPacket* packets, int64_t m, int64_t first, int64_t tiles,
                    int64_t step, const double* tile_sum, PairSum* sums) {
  static_assert(kGramChunks <= kWarp, "a lane a chunk");
  const int lane = threadIdx.x % kWarp;
  const int64_t past = first + tiles, begun = first / step, last = (past - 1) / step;
  for (int64_t pair = grid_first() / kWarp; pair < m * m; pair += grid_stride() / kWarp) {
    const int64_t i = pair / m, j = pair % m;
    if (i > j || (is_ternary(packets[i]) && is_ternary(packets[j]))) continue;
    const PairSum before = sums[pair];
    const bool goes_on = first % step != 0;  // with the chunk of the launch before
    const int64_t from = lane == begun ? first : lane * step,
                  until = lane == last ? past : (lane + 1) * step;
    double chunk = goes_on && lane == begun ? before.chunk : 0.0;
    for (int64_t t = from; lane >= begun && lane <= last && t < until; ++t)
      chunk += tile_sum[(t - first) * m * m + pair];
    double dot = goes_on ? before.dot : before.dot + before.chunk;
    for (int64_t c = begun; c < last; ++c)
      dot += __shfl_sync(kWholeWarp, chunk, static_cast<int>(c));
    chunk = __shfl_sync(kWholeWarp, chunk, static_cast<int>(last));
    __syncwarp();
    if (lane == 0) sums[pair] = {dot, chunk};
  }
}

}  // namespace gcext
