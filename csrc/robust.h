// robust: the trimmed mean of m packets, element by element, as one dense tensor; with all but the
// middle one or two values trimmed it is the median.
//
//   x_1e <= .. <= x_me   the packets' values of element e, 0 where a packet has no entry
//   out_e = fl32((x_(drop+1)e + .. + x_(m-drop)e) / (m - 2*drop))
//                        float64 from +0 in rising order, each sum rounded; one division; then once
//                        to float32
//
// Sorting makes the result independent of the order of the packets, the number of threads and the
// instruction set.
//
// Elements are cut into tiles of kRobustTile; threads take contiguous tiles, with a cursor a
// packet.
//
//   1. Count the entries of each element. With c <= drop of them all that is not 0 is trimmed, and
//      the result is 0: only the other elements become columns. For a median of sparse packets
//      these are few.
//   2. Put the entries of each column into rows 0, 1, .. of a table; with R the largest c, rows up
//      to R that a column does not fill are 0.
//
//        column     0    1    2    3          slot of the element
//        row 0    -1.5  2.0  0.5  7.0
//        row 1     0.0  3.0  0.0 -2.0         +0.0 added: there is no -0 among them
//        row 2     0.0  1.0  0.0  0.0
//
//   3. Sort all columns at once: a network of minima and maxima between whole rows.
//   4. Sum. The m - R zeros that the table lacks belong between its negative and its positive
//      values: a negative value of row i has rank i, a positive one rank i + (m - R), and is in
//      where its rank is in [drop, m - drop).
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/packet_view.h"

namespace gcext {

// A table of twenty rows, 40 KiB, fits a first-level cache, one of five hundred a
// second-level one.
constexpr int64_t kRobustTile = 512;

// State between the steps of a tile. `column` lists the elements that are columns, `slot` is its
// inverse, -1 for others; `filled` counts the rows that each column has.
struct RobustTile {
  int32_t count[kRobustTile];
  int32_t slot[kRobustTile];
  int32_t column[kRobustTile];
  int32_t filled[kRobustTile];
};

// A table has `rows` rows of kRobustTile floats each, of which the first `columns` are in use.
// The bodies that walk a sparse packet start at entry `at` and return the first entry whose index
// is not below `end`; element `begin` is at offset 0 of the tile.
struct RobustTable {
  int64_t (*count)(const PacketView& packet, int64_t at, int64_t begin, int64_t end,
                   RobustTile* tile);
  int64_t (*place)(const PacketView& packet, int64_t at, int64_t begin, int64_t end,
                   RobustTile* tile, float* table);
  // Row `row` from the tile of a dense packet.
  void (*place_dense)(const float* value, int64_t columns, const RobustTile& tile, float* row);
  void (*sort)(int64_t rows, int64_t columns, float* table);
  // The trimmed mean of each column to mean[0 .. columns).
  void (*sum)(const float* table, int64_t rows, int64_t columns, int64_t m, int64_t drop,
              double* total, float* mean);
};

GCEXT_DECLARE_TABLE(RobustTable, robust_table)

}  // namespace gcext
