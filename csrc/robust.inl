// robust: the bodies, compiled once per instruction set. See robust.h for the steps.
#include "robust.h"

namespace gcext::GCEXT_ISA {
namespace {

// Step 1.
int64_t count(const PacketView& p, int64_t at, int64_t begin, int64_t end, RobustTile* tile) {
  return p.with_index([&](auto* index) {
    for (; at < p.k && index[at] < end; ++at) ++tile->count[index[at] - begin];
    return at;
  });
}

// Step 2.
int64_t place(const PacketView& p, int64_t at, int64_t begin, int64_t end, RobustTile* tile,
              float* table) {
  return p.with_index([&, value = p.value](auto* index) {
    for (; at < p.k && index[at] < end; ++at) {
      const int32_t slot = tile->slot[index[at] - begin];
      if (slot >= 0) table[tile->filled[slot]++ * kRobustTile + slot] = value[at] + 0.0f;
    }
    return at;
  });
}

void place_dense(const float* value, int64_t columns, const RobustTile& tile, float* row) {
  for (int64_t s = 0; s < columns; ++s) row[s] = value[tile.column[s]] + 0.0f;
}

// Step 3. Minima and maxima of equal values are the same bits: there is no NaN and no -0.
void exchange(float* low, float* high, int64_t columns) {
  for (int64_t s = 0; s < columns; ++s) {
    const float a = low[s], b = high[s];
    low[s] = a < b ? a : b;
    high[s] = a < b ? b : a;
  }
}

// Merge exchange (Batcher 1968; Knuth, The Art of Computer Programming 3, 5.2.2, Algorithm M): a
// network for any number of rows, about rows * log2(rows)^2 / 4 exchanges.
void sort(int64_t rows, int64_t columns, float* table) {
  int64_t top = 1;
  while (2 * top < rows) top *= 2;
  for (int64_t p = rows > 1 ? top : 0; p > 0; p /= 2) {
    for (int64_t q = top, r = 0, d = p;; d = q - p, q /= 2, r = p) {
      for (int64_t i = 0; i + d < rows; ++i)
        if ((i & p) == r) exchange(table + i * kRobustTile, table + (i + d) * kRobustTile, columns);
      if (q == p) break;
    }
  }
}

// Step 4.
void sum(const float* table, int64_t rows, int64_t columns, int64_t m, int64_t drop, double* total,
         float* mean) {
  for (int64_t s = 0; s < columns; ++s) total[s] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t rank = i + (m - rows);  // of a positive value
    const double negative = drop <= i && i < m - drop ? 1 : 0;
    const double positive = drop <= rank && rank < m - drop ? 1 : 0;
    const float* row = table + i * kRobustTile;
    for (int64_t s = 0; s < columns; ++s) {
      const double value = static_cast<double>(row[s]);
      total[s] += value * (value < 0 ? negative : positive);
    }
  }
  const double kept = static_cast<double>(m - 2 * drop);
  for (int64_t s = 0; s < columns; ++s) mean[s] = static_cast<float>(total[s] / kept);
}

}  // namespace

const RobustTable robust_table = {count, place, place_dense, sort, sum};

}  // namespace gcext::GCEXT_ISA
