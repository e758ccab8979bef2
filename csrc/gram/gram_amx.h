// gram, step 3 where the processor multiplies tiles of 8-bit integers (AMX): the same counts, four
// times as fast as by counting bits.
//
//   planes      there, minus: a bit a column        a word of 64 columns becomes 64 bytes -1, 0, 1
//   a           16 packets, a row of 64 bytes each           one tile
//   b           the same tile, its 16x16 quadruples of bytes transposed
//   sum         += a * b: 16x16 pairs, 64 columns, in one instruction
//
//   blocks of 32x32 pairs take four tiles of sums, two of a and two of b. 16 words are expanded at
//   a time: a and b of a thousand packets then share a second-level cache of 2 MiB.
//
// Sums are 32-bit integers, so `spill` is due before 2^31 columns; they are exact until then.
#pragma once

#include <cstdint>
#include <vector>

#include "gram.h"

namespace gcext {

class TileCounts {
 public:
  // Fewer packets leave the tiles too empty; more would take too much memory, 4 bytes a pair.
  static constexpr int64_t kFewest = 64, kMost = 4096;
  // What a word of a pair takes on one core, about.
  static constexpr double kWordNs = 0.04;

  // Whether the processor has the tiles, the system lets this process have them, and the
  // instruction set in use is the one that they belong to.
  static bool available();

  explicit TileCounts(int64_t packets);

  // Adds c of all pairs over the first `words` words of the planes.
  void add(const std::vector<Planes>& planes, int64_t words);

  // Adds the sums to count, which has a row of i entries for packet i, and begins anew.
  void spill(int64_t* count);

 private:
  static constexpr int64_t kSide = 16, kTileBytes = 1024;
  static constexpr int64_t kWords = 16;  // expanded at a time

  void expand(const std::vector<Planes>& planes, int64_t word, int64_t words);
  void multiply(int64_t words);

  const int64_t packets_, panels_;  // panels of 16 packets, an even number of them
  std::vector<int8_t> storage_;
  int8_t *a_, *b_;            // tile (panel, word) at (panel*kWords + word)*kTileBytes
  std::vector<int32_t> sum_;  // (16*panels)^2
};

}  // namespace gcext
