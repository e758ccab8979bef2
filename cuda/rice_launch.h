// The launchers of rice: a ternary packet's streams on the device, from the selected pairs and
// back.
//
//   streams   table | remainders, pad | unary, pad | signs, pad      docs/wire-format.md: what
//   stands
//                                                                    between scale and checksum
#pragma once

#include <cmath>

#include "../csrc/rice.h"
#include "launch.h"

namespace gcext {

// What a packing launcher leaves: kPackHead bytes of numbers, then the streams, to be copied to the
// host together.
enum PackField {
  kPackBytes,  // of the streams
  kPackWrong,  // 1 where the indices do not rise strictly below numel; then there are no streams
  kPackInfo,   // select's info from here on: count, status, where, mean
  kPackFields = kPackInfo + kInfoSize
};
constexpr int64_t kPackHead = 64;
static_assert(kPackFields * 8 <= kPackHead, "the numbers fit the head");

// Bytes that hold the head and the streams of up to k of numel numbers, rounded up to words. A tile
// of n gaps with sum G has no longer code than b = log2(G/n), rounded down: at most
// n*(2 + log2(G/n + 1/2)) bits, remainders and unary part together. That is concave, so the tiles
// together have at most k*(2 + log2(numel/k)); this rises with k, so fewer than k need no more.
// A random support takes 0.5 (p = 0.01) to 0.6 (p = 0.1) bits an element less: a host that knows
// only k copies the bound in one go, 6 to 11 % more bytes, instead of asking for the length first.
inline int64_t pack_bound(int64_t k, int64_t numel) {
  if (k == 0) return kPackHead;
  const double each = 3 + std::log2(static_cast<double>(numel) / static_cast<double>(k));  // + sign
  const double bits = std::ceil(static_cast<double>(k) * each * (1 + 1e-9));
  const int64_t tiles = k / kTile + (k % kTile != 0);
  const int64_t bytes = kPackHead + 3 * tiles + static_cast<int64_t>(bits) / 8 + 1 + 3;  // and pads
  return (bytes + 3) / 4 * 4;
}

// Blocks own contiguous tiles, and every block adds up what the others hold: so many at most.
constexpr int64_t kRiceBlocks = 1024;

// Bytes of scratch of either launcher, 8-byte aligned.
int64_t rice_scratch_bytes();

// The first info[kInfoCount] <= k of the pairs, none where info has a status.
struct PackLaunch {
  const void* index;
  bool wide;
  const float* value;  // only signs are read
  int64_t k, numel;    // k <= numel
  const int64_t* info;
  uint8_t* out;  // pack_bound(k, numel) bytes, 8-byte aligned
  void* scratch;
  int64_t max_blocks;  // at most kRiceBlocks; the result does not depend on it
};
cudaError_t launch_pack(const PackLaunch& args, cudaStream_t stream);

// numel * 1024 tiles' worth of numbers must not wrap around 64 bits: larger shapes are the host's.
constexpr int64_t kUnpackNumel = int64_t{1} << 52;
constexpr int kUnpackRice = 52;  // no canonical b is larger then

// A message whose structure the host has checked: its streams begin at byte `begin`, and its sign
// bits end 8 bytes before it does. The rules of the tiles' contents (2, 3 and 4 of
// docs/wire-format.md) are checked here: *wrong = 0 where they hold, else 1, and then the pairs are
// anything. No byte outside the message is read, whatever it says.
struct UnpackLaunch {
  const uint32_t* message;  // 4-byte aligned
  int64_t bytes, begin, remainder_bytes;
  int64_t k, numel;  // 0 < k <= numel <= kUnpackNumel
  uint32_t scale;    // a float32's bits
  void* index;
  bool wide;
  float* value;
  int64_t* wrong;
  void* scratch;
  int64_t max_blocks;  // at most kRiceBlocks; the result does not depend on it
};
cudaError_t launch_unpack(const UnpackLaunch& args, cudaStream_t stream);

}  // namespace gcext
