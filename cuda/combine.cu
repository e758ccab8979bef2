// combine on CUDA: the kernels and their launches. csrc/combine.h has the contract.
//
// 1. Take: the packets' pointers and weights travel as kernel arguments, a chunk a launch, into
//    device memory. A copy from the host's pageable memory would wait for the stream.
// 2. Sum: a block owns a run of tiles, one at a time, as float64 in shared memory, and of every
//    packet it keeps the first entry that is left: found once by bisection, then by counting.
//    Packets go eight at a time: each warp loads the next entries of one, all loads in flight; then
//    the warps add them, one after another. Indices are distinct within a packet, so no two threads
//    meet between two barriers, and each element is summed in the order of the packets.
// 3. Round to float32, once.
//
// Bytes of global memory: 4 an element, 8 an entry, and for each packet and tile about a sector of
// values, half a row of indices that belong to the next tile. So tiles are as long as a warp can
// load the entries of one in a go, of the packet with the most (combine_tile).
#include "packet.cuh"

namespace gcext {

constexpr int kCombineThreads = 256;
constexpr int kCombineWarps = kCombineThreads / kWarp;
constexpr int kSumTile = 5120;  // 40 KiB of float64: of 20 packets at p = 0.01 two rows each
constexpr int kLeastSumTile = kSumTile / 16;
constexpr int kHeldPackets = 128;  // in shared memory, with their cursors
constexpr int kPacketChunk = 64;   // 2.5 KiB: kernel arguments may take 4 KiB

struct PacketChunk {
  WeightedPacket packet[kPacketChunk];
};

// Step 1, one block.
__global__ void __launch_bounds__(kPacketChunk)
    combine_take_kernel(PacketChunk chunk, int count, WeightedPacket* to) {
  if (static_cast<int>(threadIdx.x) < count) to[threadIdx.x] = chunk.packet[threadIdx.x];
}

// Steps 2 and 3.
__global__ void __launch_bounds__(kCombineThreads)
    combine_sum_kernel(const WeightedPacket* packets, int64_t m, int64_t numel, int64_t tile,
                       float* out) {
  __shared__ double sum[kSumTile];
  __shared__ SharedCopy<WeightedPacket> held[kHeldPackets];
  __shared__ int64_t cursors[kHeldPackets];
  const bool holds = m <= kHeldPackets;
  const Range tiles = range_of_block(ceil_div(numel, tile));
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (holds) {
    for (int j = threadIdx.x; j < m; j += kCombineThreads) {
      *held[j] = packets[j];
      const PacketView p = packets[j].packet;
      cursors[j] = p.dense ? 0 : first_entry_from(p, tiles.begin * tile);
    }
    __syncthreads();
  }
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const int64_t begin = t * tile;
    const int size = static_cast<int>(numel - begin < tile ? numel - begin : tile);
    for (int i = threadIdx.x; i < size; i += kCombineThreads) sum[i] = 0.0;
    for (int64_t base = 0; base < m; base += kCombineWarps) {
      const int64_t own = base + warp;
      EntryRows entries;
      int rows = 0;
      if (own < m) {
        const PacketView p = holds ? (*held[own]).packet : packets[own].packet;
        rows = rows_of(p, tile, numel);
        const int64_t from = p.dense ? 0 : holds ? cursors[own] : first_entry_from(p, begin);
        if (!p.dense) entries.load(p, from, rows, begin, size);
      }
      for (int64_t j = base; j < base + kCombineWarps && j < m; ++j) {
        __syncthreads();
        const WeightedPacket& each = holds ? *held[j] : packets[j];
        const PacketView& p = each.packet;
        if (p.dense) {
          for (int i = threadIdx.x; i < size; i += kCombineThreads)
            sum[i] += each.weight * static_cast<double>(p.value[begin + i]);
        } else if (j == own) {
          const auto add = [&](int place, float value) {
            sum[place] += each.weight * static_cast<double>(value);
          };
          int count = entries.each(size, add);
          int64_t passed = entries.from + count;
          while (count == rows * kWarp) {  // there may be more of them
            __syncwarp();
            entries.load(p, passed, rows, begin, size);
            count = entries.each(size, add);
            passed += count;
          }
          if (holds && threadIdx.x % kWarp == 0) cursors[j] = passed;
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += kCombineThreads)
      out[begin + i] = static_cast<float>(sum[i]);
    // The next tile needs no barrier here: a thread clears the very elements that it rounded.
  }
}

// combine_add_: a thread an entry. Indices are distinct, so no two threads meet.
__global__ void __launch_bounds__(kCombineThreads) combine_add_kernel(CombineAddLaunch a) {
  if (a.info != nullptr && a.info[kInfoStatus] != kSelectOk) return;
  const PacketView& p = a.packet;
  for (int64_t e = grid_first(); e < p.k; e += grid_stride()) {
    const int64_t i = p.dense ? e : index_at(p, e);
    if (i >= 0 && i < a.numel) a.dense[i] += a.alpha * p.value[e];
  }
}

// The launches.

namespace {

// The longest tile of which a warp loads the entries in a go, were they spread evenly.
int64_t combine_tile(const CombineLaunch& args) {
  int64_t most = 0;
  for (int64_t i = 0; i < args.m; ++i) {
    const PacketView& packet = args.packets[i].packet;
    if (!packet.dense && packet.k > most) most = packet.k;
  }
  int64_t tile = kSumTile;
  while (tile > kLeastSumTile && most > args.numel / tile * kEntryRows * kWarp) tile /= 2;
  return tile;
}

}  // namespace

cudaError_t launch_take(const WeightedPacket* packets, int64_t m, WeightedPacket* to,
                        cudaStream_t stream) {
  for (int64_t at = 0; at < m; at += kPacketChunk) {
    const int count = static_cast<int>(m - at < kPacketChunk ? m - at : kPacketChunk);
    PacketChunk chunk = {};
    for (int i = 0; i < count; ++i) chunk.packet[i] = packets[at + i];
    GCEXT_LAUNCH(combine_take_kernel, 1, kPacketChunk, stream, chunk, count, to + at);
  }
  return cudaSuccess;
}

cudaError_t launch_combine(const CombineLaunch& args, cudaStream_t stream) {
  if (args.numel == 0) return cudaSuccess;
  if (const cudaError_t error = launch_take(args.packets, args.m, args.scratch, stream);
      error != cudaSuccess)
    return error;
  const int64_t tile = combine_tile(args);
  GCEXT_LAUNCH(combine_sum_kernel, blocks_for(args.numel, tile, args.max_blocks), kCombineThreads,
               stream, args.scratch, args.m, args.numel, tile, args.out);
  return cudaSuccess;
}

cudaError_t launch_combine_add(const CombineAddLaunch& args, cudaStream_t stream) {
  if (args.packet.k == 0) return cudaSuccess;
  GCEXT_LAUNCH(combine_add_kernel, blocks_for(args.packet.k, kCombineThreads, args.max_blocks),
               kCombineThreads, stream, args);
  return cudaSuccess;
}

}  // namespace gcext
