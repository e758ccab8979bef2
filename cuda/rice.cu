// rice on CUDA: the sequences of launches. Steps as numbered in rice.cuh.
#include "rice_pack.cuh"
#include "rice_unpack.cuh"

namespace gcext {
namespace {

static_assert(sizeof(Chunk<PackItem>) + 32 <= 4096 && sizeof(Chunk<UnpackItem>) + 32 <= 4096,
              "kernel arguments");
static_assert(Chunk<PackItem>::kMost == 53 && Chunk<UnpackItem>::kMost == 53,
              "as rice_launch.h has it");

// Deals blocks to the items, and calls launch(chunk, blocks) for every so many of them.
template <class Item, class Launch>
cudaError_t for_chunks(const Item* items, int64_t count, int64_t max_blocks, const Launch& launch) {
  Chunk<Item> chunk = {};
  for (int64_t i = 0; i < count; ++i) {
    const int j = chunk.count++;
    chunk.item[j] = items[i];
    chunk.first[j + 1] =
        chunk.first[j] + static_cast<uint32_t>(rice_blocks(items[i].k, max_blocks));
    if (chunk.count < Chunk<Item>::kMost && i + 1 < count) continue;
    const cudaError_t error = launch(chunk, chunk.first[j + 1] - chunk.first[0]);
    if (error != cudaSuccess) return error;
    chunk.first[0] = chunk.first[j + 1];
    chunk.count = 0;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t launch_pack(const PackItem* items, int64_t count, uint8_t* out, void* scratch,
                        int64_t max_blocks, cudaStream_t stream) {
  PackTotals* totals = static_cast<PackTotals*>(scratch);
  return for_chunks(items, count, max_blocks, [&](const Chunk<PackItem>& chunk, uint32_t blocks) {
    GCEXT_LAUNCH(rice_measure_kernel, blocks, kRiceThreads, stream, chunk, out, totals);
    GCEXT_LAUNCH(rice_write_kernel, blocks, kRiceThreads, stream, chunk, out, totals);
    return cudaSuccess;
  });
}

cudaError_t launch_unpack(const UnpackItem* items, int64_t count, const uint32_t* message,
                          int64_t bytes, void* scratch, int64_t max_blocks, cudaStream_t stream) {
  UnpackTotals* totals = static_cast<UnpackTotals*>(scratch);
  const BitStream bits{message, bytes / 4};
  return for_chunks(items, count, max_blocks, [&](const Chunk<UnpackItem>& chunk, uint32_t blocks) {
    GCEXT_LAUNCH(rice_read_kernel, blocks, kRiceThreads, stream, chunk, bits, totals);
    GCEXT_LAUNCH(rice_place_kernel, blocks, kRiceThreads, stream, chunk, totals);
    return cudaSuccess;
  });
}

}  // namespace gcext
