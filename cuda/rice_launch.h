// The launchers of rice: ternary packets' streams on the device, from the selected pairs and back,
// of one packet or of a whole model's in the same few launches.
//
//   streams   table | remainders, pad | unary, pad | signs, pad
//
// docs/wire-format.md: what is between a ternary body's scale and what follows it.
#pragma once

#include "../csrc/rice.h"
#include "launch.h"

namespace gcext {

// Blocks own contiguous tiles, and every block adds up what the others of its item hold: so many
// an item at most.
constexpr int64_t kRiceBlocks = 1024;

// Of an item of up to k numbers; one where nothing can travel, since its head is written.
inline int64_t rice_blocks(int64_t k, int64_t max_blocks) {
  const int64_t tiles = k / kTile + (k % kTile != 0),
                blocks = tiles < max_blocks ? tiles : max_blocks;
  return blocks > 0 ? blocks : 1;
}

// Bytes of scratch of either launcher, 8-byte aligned: so many a block.
constexpr int64_t kRiceTotals = 24;
template <class Item>
int64_t rice_scratch_bytes(const Item* items, int64_t count, int64_t max_blocks) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += rice_blocks(items[i].k, max_blocks);
  return blocks * kRiceTotals;
}

// What a packing launcher leaves, to be copied to the host at once: kPackHead bytes of numbers
// for each item, then the streams of each, with gaps between them.
enum PackField {
  kPackAt,     // where the item's streams begin, in bytes
  kPackBytes,  // of the streams
  kPackWrong,  // 1 where the indices do not rise strictly below numel; then there are no streams
  kPackInfo,   // select's info from here on: count, status, where, mean
  kPackFields = kPackInfo + kInfoSize
};
constexpr int64_t kPackHead = 8 * kPackFields;

// Bytes that hold the streams of up to k of numel numbers, rounded up to words. No tile's code is
// longer than with another b, whatever b: so the tiles together have at most k*(b + 1) bits and the
// gaps' sum, at most numel - k, over 2^b; then come the signs. For any b this rises with k, so that
// fewer than k need no more; the b taken gives about the least.
//
// A host that has only k copies the bound at once instead of reading the length first: for a
// random support, 4 to 7 % more bytes.
inline int64_t pack_bound(int64_t k, int64_t numel) {
  if (k == 0) return 0;
  const int64_t gaps = numel - k;
  int b = 0;
  while (gaps >> (b + 1) > k) ++b;
  const int64_t bits = k * (b + 2) + (gaps >> b);
  const int64_t tiles = k / kTile + (k % kTile != 0);
  const int64_t bytes = 3 * tiles + bits / 8 + 1 + 3;  // and pads
  return (bytes + 3) / 4 * 4;
}

// A packet to be packed: all k of the pairs, or where there is info, the first
// info[kInfoCount] <= k of them, none where info has a status.
struct PackItem {
  const void* index;
  const float* value;       // only signs are read
  const int64_t* info;      // select's, or nullptr
  int64_t k, numel;         // k <= numel
  int64_t head, at, bytes;  // in the output: lay_out's
  bool wide;                // the index's type: int64, else int32
};

// Sets where in the output each item's head and streams go; returns how many bytes it takes.
inline int64_t lay_out(PackItem* items, int64_t count) {
  int64_t bytes = count * kPackHead;
  for (int64_t i = 0; i < count; ++i) {
    items[i].head = i * kPackHead;
    items[i].at = bytes;
    items[i].bytes = pack_bound(items[i].k, items[i].numel);
    bytes += items[i].bytes;
  }
  return bytes;
}

// Two launches for every 53 items. `items` is host memory and may go once the call is back; `out`
// is 8-byte aligned; no result depends on max_blocks, at most kRiceBlocks.
cudaError_t launch_pack(const PackItem* items, int64_t count, uint8_t* out, void* scratch,
                        int64_t max_blocks, cudaStream_t stream);

// numel * 1024 tiles' worth of numbers must not wrap around 64 bits: larger shapes are the host's.
constexpr int64_t kUnpackNumel = int64_t{1} << 52;
constexpr int kUnpackRice = 52;  // no canonical b is larger then

// A packet to be opened, of a message whose structure the host has checked: its streams are the
// message's bytes [begin, end). The rules of the tiles' contents (2, 3 and 4 of
// docs/wire-format.md) are checked here: *wrong = 0 where they hold, else 1, and then the pairs are
// anything. No byte outside the message is read, whatever it holds.
struct UnpackItem {
  int64_t begin, end, remainder_bytes;
  int64_t k, numel;  // 0 < k <= numel <= kUnpackNumel
  void* index;
  float* value;
  int64_t* wrong;
  uint32_t scale;  // a float32's bits
  bool wide;
};

// As launch_pack. The message is 4-byte aligned.
cudaError_t launch_unpack(const UnpackItem* items, int64_t count, const uint32_t* message,
                          int64_t bytes, void* scratch, int64_t max_blocks, cudaStream_t stream);

}  // namespace gcext
