// robust on CUDA: the kernel and its launch. csrc/robust.h has the contract and the steps.
//
// A block owns a run of tiles. Packets may send any elements, so what a tile needs is not known
// before its entries are counted:
//
//   1. Count: a warp takes a sparse packet; its entries count in their elements. The elements with
//      more than `drop` entries become columns, in their order; of the others the result is 0.
//   2. With R the most entries of an element, a table of R rows holds kTableSize / R columns: the
//      columns go through it in batches. Entries are read again for each, from the cache; each
//      takes the next row of its column: their order does not matter, as columns are sorted.
//   3. Sort the columns at once, a barrier for each step of the network.
//   4. Sum: a thread a column.
//
// Bytes of global memory: 8 an entry, 4 an element and dense packet, 4 an element written; where
// one packet is dense, R is at least the number of those that are, and batches read the sparse ones
// R * kRobustSpan / kTableSize times, from a cache.
#include "packet.cuh"
#include "robust_launch.h"

namespace gcext {

constexpr int kRobustThreads = 256;
constexpr int kRobustWarps = kRobustThreads / kWarp;
constexpr int kRobustSpan = 4 * kRobustThreads;  // elements of a tile
constexpr int kTableSize = 5632;                 // 22 KiB of the 48 that a block may declare

struct RobustShared {
  float table[kTableSize];
  float mean[kRobustSpan];       // of each element
  int64_t from[kRobustPackets];  // the first entry in the tile, of a sparse packet
  int passed[kRobustPackets];    // and how many there are
  int count[kRobustSpan];        // entries of an element; of a column, the rows that are filled
  int16_t slot[kRobustSpan];     // the column of an element, or -1
  int16_t column[kRobustSpan];   // the element of a column
  uint64_t warp_sums[kRobustWarps];
  int rows;
};

// Step 1: how many entries each element has; a cursor's packet belongs to one warp.
__device__ inline void count_entries(const WeightedPacket* packets, int64_t dense, int64_t m,
                                     int64_t begin, int size, int64_t numel, RobustShared* shared) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int i = threadIdx.x; i < size; i += kRobustThreads)
    shared->count[i] = static_cast<int>(dense);
  __syncthreads();
  for (int64_t j = dense + warp; j < m; j += kRobustWarps) {
    const PacketView p = packets[j].packet;
    const int64_t from = shared->from[j];
    const int64_t next = walk_tile(p, from, rows_of(p, kRobustSpan, numel), begin, size,
                                   [&](int place, float) { atomicAdd(&shared->count[place], 1); });
    if (threadIdx.x % kWarp == 0)
      shared->passed[j] = static_cast<int>(next - from < INT32_MAX ? next - from : INT32_MAX);
  }
  __syncthreads();
}

// Step 1: which elements are columns; how many. Leaves the most entries of one in shared->rows, of
// m packets at most m: more are of indices that repeat, which a sound packet's do not.
__device__ inline int choose_columns(int64_t m, int64_t drop, int size, RobustShared* shared) {
  if (threadIdx.x == 0) shared->rows = 0;
  const int first = 4 * static_cast<int>(threadIdx.x);
  uint64_t own = 0;
  int most = 0;
  for (int c = 0; c < 4 && first + c < size; ++c) {
    const int count = shared->count[first + c];
    own += count > drop;
    most = count > most ? count : most;
  }
  uint64_t total;
  int slot = static_cast<int>(block_exclusive_sum(own, shared->warp_sums, &total));
  atomicMax(&shared->rows, most < m ? most : static_cast<int>(m));
  for (int c = 0; c < 4 && first + c < size; ++c) {
    const bool chosen = shared->count[first + c] > drop;
    shared->slot[first + c] = static_cast<int16_t>(chosen ? slot : -1);
    if (chosen) shared->column[slot++] = static_cast<int16_t>(first + c);
  }
  __syncthreads();
  return static_cast<int>(total);
}

// Step 2, for columns [first, first + columns): a column's rows are `columns` apart.
__device__ inline void fill_table(const WeightedPacket* packets, int64_t dense, int64_t m,
                                  int64_t begin, int size, int64_t numel, int first, int columns,
                                  RobustShared* shared) {
  const int lane = threadIdx.x % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int i = threadIdx.x; i < columns; i += kRobustThreads)
    shared->count[i] = static_cast<int>(dense);
  for (int j = warp; j < shared->rows; j += kRobustWarps) {
    const float* const value = j < dense ? packets[j].packet.value + begin : nullptr;
    for (int i = lane; i < columns; i += kWarp)
      shared->table[j * columns + i] =
          value == nullptr ? 0.0f : value[shared->column[first + i]] + 0.0f;
  }
  __syncthreads();
  for (int64_t j = dense + warp; j < m; j += kRobustWarps) {
    const PacketView p = packets[j].packet;
    walk_tile(p, shared->from[j], rows_of(p, kRobustSpan, numel), begin, size,
              [&](int place, float value) {
                const int at = shared->slot[place] - first;
                if (shared->slot[place] < 0 || at < 0 || at >= columns) return;
                const int row = atomicAdd(&shared->count[at], 1);
                if (row < shared->rows) shared->table[row * columns + at] = value + 0.0f;
              });
  }
  __syncthreads();
}

// Step 3, the network of csrc/robust.inl.
__device__ inline void sort_columns(int rows, int columns, float* table) {
  int top = 1;
  while (2 * top < rows) top *= 2;
  for (int p = rows > 1 ? top : 0; p > 0; p /= 2) {
    for (int q = top, r = 0, d = p;; d = q - p, q /= 2, r = p) {
      for (int at = threadIdx.x; at < (rows - d) * columns; at += kRobustThreads) {
        if ((at / columns & p) != r) continue;
        float* const low = table + at;
        float* const high = low + d * columns;
        const float a = *low, b = *high;
        *low = a < b ? a : b;
        *high = a < b ? b : a;
      }
      __syncthreads();
      if (q == p) break;
    }
  }
}

// Step 4. A value that is left out would have added a zero.
__device__ inline float trimmed_mean_of(const float* value, int rows, int stride, int64_t m,
                                        int64_t drop) {
  double total = 0;
  for (int i = 0; i < rows; ++i) {
    const float x = value[i * stride];
    const int64_t rank = x < 0 ? i : i + (m - rows);
    if (drop <= rank && rank < m - drop) total += static_cast<double>(x);
  }
  return static_cast<float>(total / static_cast<double>(m - 2 * drop));
}

__global__ void __launch_bounds__(kRobustThreads)
    robust_kernel(const WeightedPacket* packets, int64_t dense, int64_t m, int64_t drop,
                  int64_t numel, float* out) {
  __shared__ RobustShared held;
  RobustShared* const shared = &held;
  const Range tiles = range_of_block(ceil_div(numel, kRobustSpan));
  for (int64_t j = dense + threadIdx.x; j < m; j += kRobustThreads)
    shared->from[j] = first_entry_from(packets[j].packet, tiles.begin * kRobustSpan);
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t begin = tile * kRobustSpan;
    const int size = static_cast<int>(numel - begin < kRobustSpan ? numel - begin : kRobustSpan);
    count_entries(packets, dense, m, begin, size, numel, shared);
    const int chosen = choose_columns(m, drop, size, shared);
    for (int i = threadIdx.x; i < size; i += kRobustThreads) shared->mean[i] = 0.0f;
    const int rows = shared->rows, most = rows > 0 ? kTableSize / rows : 0;
    const int batch = most > kWarp ? most / kWarp * kWarp : most;  // of whole sectors
    for (int first = 0; first < chosen; first += batch) {
      const int columns = chosen - first < batch ? chosen - first : batch;
      fill_table(packets, dense, m, begin, size, numel, first, columns, shared);
      sort_columns(rows, columns, shared->table);
      for (int i = threadIdx.x; i < columns; i += kRobustThreads)
        shared->mean[shared->column[first + i]] =
            trimmed_mean_of(shared->table + i, rows, columns, m, drop);
      __syncthreads();  // the next batch takes the table; the means are there
    }
    // Without a batch a thread reads the zeros that it wrote itself.
    for (int i = threadIdx.x; i < size; i += kRobustThreads) out[begin + i] = shared->mean[i];
    for (int64_t j = dense + threadIdx.x; j < m; j += kRobustThreads)
      shared->from[j] += shared->passed[j];
    // What the next tile changes before its first barrier, the counts, was last read above.
  }
}

cudaError_t launch_trimmed_mean(const RobustLaunch& args, cudaStream_t stream) {
  if (const cudaError_t error = launch_take(args.packets, args.m, args.scratch, stream);
      error != cudaSuccess)
    return error;
  GCEXT_LAUNCH(robust_kernel, blocks_for(args.numel, kRobustSpan, args.max_blocks), kRobustThreads,
               stream, args.scratch, args.dense, args.m, args.drop, args.numel, args.out);
  return cudaSuccess;
}

}  // namespace gcext
