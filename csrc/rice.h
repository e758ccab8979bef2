// rice: the gaps of sorted indices to bits and back, one tile at a time.
//
//   gap_0 = index_0 - previous - 1        previous = the last index of the tile before, -1 at first
//   gap_i = index_i - index_{i-1} - 1     so a repeated or falling index cannot be written
//   gap   = q * 2^b + r                   0 <= r < 2^b
//
//   remainders   r_0 r_1 r_2 ...          b bits each (a plane, see bits.h)
//   unary        q zeros, then a one      for each gap; the lowest bit first
//
//       gaps 5 0 2 at b = 1:   r = 1 0 0          q = 2 0 1
//       remainders  bit 0..2   1 0 0
//       unary       bit 0..5   0 0 1 1 0 1        so the one of gap i is at bit q_0 + .. + q_i + i
//
// One unary bit per gap and position arithmetic replace the usual bit-by-bit decoder: with pos_i
// the place of the i-th one,
//
//   index_i = previous + 1 + i + ((pos_i - i) << b) + (r_0 + .. + r_i)
//
// The parameter b of a tile of m gaps is the smallest with S(b) = sum ceil((gap >> b) / 2) <= m.
// Going from b to b+1 adds m remainder bits and saves S(b) unary bits, and S never rises, so this
// is the b of the shortest code (the smallest of them on a tie). Hence sum q <= 2*m always: no
// escape code is needed. A decoder proves b from what it has at hand, without the other codes:
//
//   S(b) = sum ceil(q / 2) <= m           and, unless b = 0,
//   S(b - 1) = sum q + sum (top bit of r) > m
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace gcext {

// Sent elements in a tile. 512 cost 0.4 % more on a random support at p = 0.1, and 2048 up to 13 %
// more on supports that cluster by layer (p = 0.01).
constexpr int64_t kTile = 1024;

// The largest parameter: gaps stay below 2^63, and S(62) of one gap is at most 1.
constexpr int kMaxRice = 62;

// Words of the unary part of a tile: at most m + 2*m bits.
constexpr int64_t kUnaryWords = 3 * kTile / 64;

struct RiceTile {
  uint8_t b;       // Rice parameter, in [0, kMaxRice]
  uint16_t zeros;  // sum of q, in [0, 2*m]
};

// The gaps of one tile; `narrow`: which array holds them (32 bits hold nearly every tile).
struct Gaps {
  int64_t n;
  bool narrow;
  uint32_t gap32[kTile];
  uint64_t gap64[kTile];
};

// Reads n <= kTile indices. False where they do not rise strictly from `previous`.
bool rice_gaps(const int32_t* index, int64_t n, int64_t previous, Gaps* gaps);
bool rice_gaps(const int64_t* index, int64_t n, int64_t previous, Gaps* gaps);

// The canonical parameter of the tile, by the formula above.
RiceTile rice_choose(const Gaps& gaps);

// Writes the remainders, plane_bytes(n, b) bytes, and the unary part, n + zeros bits from bit 0 of
// `unary` (kUnaryWords words; the bits after the last one are zero).
void rice_write(const Gaps& gaps, RiceTile tile, uint8_t* remainders, uint64_t* unary);

enum class RiceStatus {
  ok,
  unary,      // the unary part does not end with the n-th one
  parameter,  // b is not the canonical one
  range,      // an index is not below `limit`
};

// Reads one tile back: n indices, all in (previous, limit), to `index`. `unary` holds n + zeros
// bits, zero beyond. On any status but ok the contents of `index` are unspecified. `remainders`
// is read up to kBitsSlack bytes after its end.
// Index: int32_t or int64_t.
template <class Index>
RiceStatus rice_read(RiceTile tile, int64_t n, const uint8_t* remainders, const uint64_t* unary,
                     int64_t previous, int64_t limit, Index* index);

// The bodies behind the functions above, for gaps and offsets that fit 32 bits.
struct RiceTable {
  // gap_i = index_i - index_{i-1} - 1 for i >= 1, index_0 - first for i = 0. False on a fall.
  bool (*gaps)(const int32_t* index, int64_t n, int64_t first, uint32_t* gap);
  // sum ceil((gap >> b) / 2), for b <= 31.
  uint64_t (*half_sum)(const uint32_t* gap, int64_t n, int b);
  // The low b bits of each gap, and the ones of the unary part into zeroed words.
  void (*split)(const uint32_t* gap, int64_t n, int b, uint32_t* remainder, uint64_t* unary);
  // The places of the ones, in order, and their number; writes up to 16 entries more than that.
  int64_t (*ones)(const uint64_t* word, int64_t words, uint32_t* place);
  // offset_i = i + ((place_i - i) << b) + r_0 + .. + r_i; none may reach 2^32. Also the two sums
  // that prove b: halves = sum ceil(q / 2), tops = sum of the top bits of r (0 for b = 0).
  void (*join)(const uint32_t* place, const uint32_t* remainder, int64_t n, int b, uint32_t* offset,
               uint32_t* halves, uint32_t* tops);
};

GCEXT_DECLARE_TABLE(RiceTable, rice_table)

}  // namespace gcext
