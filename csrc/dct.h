// dct: the orthonormal DCT-II of the blocks of a matrix, fused with the choice of the largest
// coefficients of each block and with error feedback (DeMo, Peng et al. 2024).
//
//   acc = tensor + decay*memory                        float32, two roundings, no contraction
//   Y   = C_h acc C_w^T      for each h x w block of acc; C_n the basis below
//   acc = C_h^T Y C_w        the inverse
//
//   C_n[u][x] = s_u cos(pi (2x + 1) u / 2n),  s_0 = sqrt(1/n), else sqrt(2/n); each entry rounded
//   once to float32, from a table that the compiler computes: no library's cosine plays a part
//
// Blocks. A dimension of n elements is cut into ceil(n/block) parts as equal as can be, the longer
// ones first: so every shape has blocks of `block` or fewer, and none is padded.
//
//   n = 150, block = 64:   |--- 50 ---|--- 50 ---|--- 50 ---|        n = 65:   |-- 33 --|-- 32 --|
//
// Coefficients are numbered block by block, row by row of blocks, and within a block row by row:
// block (i, j), which begins at row r and column c, has the numbers r*cols + h*c + u*w + v.
//
// Each sum is float32, from +0 on, over rising x (of Y: first over rows, then over columns),
// product and sum rounded each: the same bits everywhere. A term of a zero changes nothing, so the
// inverse passes over rows and columns without a coefficient.
//
//   select  the k coefficients of largest magnitude of each block, ties to the lower number; zeros
//           are never chosen. ternary: each becomes plus or minus the mean magnitude of all chosen
//           ones, the exact sum rounded once.
//           out = acc less the inverse of what was chosen, one rounding
//           index int32 (int64 from 2^31 elements on), rising;  value float32
//           info int64[4], see select.h: chosen | status | where | bits of the mean (ternary)
//
// A coefficient above 2^116 has the status kSelectTransform: up to there no inverse overflows. As
// in quantize.h, nothing was written where there is a status; but on CUDA, which reports it
// deferred, out then becomes a copy of memory.
#pragma once

#include "common/exact_mean.h"
#include "common/isa.h"
#include "common/source.h"

namespace gcext {

constexpr int kMaxDct = 64;                       // the largest block, of a dimension
constexpr int kDctArea = kMaxDct * kMaxDct;       // elements of a block's buffer, stride kMaxDct
constexpr uint32_t kDctLargestKey = 0x79800000u;  // 2^116

// A dimension cut into parts.
struct DctCuts {
  int64_t count, size, longer;  // parts; elements of a shorter one; parts of one element more

  GCEXT_HD DctCuts(int64_t n, int64_t block)
      : count(n / block + (n % block != 0)),
        size(count == 0 ? 0 : n / count),
        longer(count == 0 ? 0 : n % count) {}

  GCEXT_HD int64_t begin(int64_t part) const {
    return part * size + (part < longer ? part : longer);
  }
  GCEXT_HD int length(int64_t part) const { return static_cast<int>(size + (part < longer)); }
  GCEXT_HD int longest() const { return static_cast<int>(size + (longer > 0)); }
  GCEXT_HD int64_t part_of(int64_t element) const {
    const int64_t first = longer * (size + 1);
    return element < first ? element / (size + 1) : longer + (element - first) / size;
  }
};

// One block of a matrix.
struct DctBlock {
  int64_t first;   // its first element in the tensor; rows are `cols` elements apart
  int64_t number;  // of its first coefficient
  int h, w;
  bool long_h, long_w;  // whether it is one of the longer parts
};

// The blocks of a rows x cols matrix, numbered row by row.
struct DctGrid {
  int64_t n_cols;
  DctCuts rows, cols;

  GCEXT_HD DctGrid(int64_t n_rows, int64_t columns, int64_t block)
      : n_cols(columns), rows(n_rows, block), cols(columns, block) {}

  GCEXT_HD int64_t blocks() const { return rows.count * cols.count; }
  // The most coefficients that a block has.
  GCEXT_HD int64_t largest() const { return int64_t{1} * rows.longest() * cols.longest(); }
  GCEXT_HD DctBlock block(int64_t index) const {
    const int64_t i = index / cols.count, j = index % cols.count;
    const int64_t row = rows.begin(i), column = cols.begin(j);
    const int h = rows.length(i), w = cols.length(j);
    return {row * n_cols + column, row * n_cols + h * column, h, w, i < rows.longer,
            j < cols.longer};
  }
};

// cos(pi j / 2n) sqrt(2/n) for 0 <= j < n, and sqrt(1/n); n from 1 to kMaxDct.
struct DctTable {
  float cosine[kMaxDct * (kMaxDct + 1) / 2];  // of n from n (n - 1)/2 on
  float first[kMaxDct + 1];
};

// By series in float64, whose error is far below that of the rounding to float32.
constexpr DctTable make_dct_table() {
  constexpr double kPi = 0x1.921fb54442d18p1;
  DctTable table{};
  for (int n = 1; n <= kMaxDct; ++n) {
    double root = 1;  // of 1/n, by Newton's iteration
    for (int step = 0; step < 40; ++step) root = (root + 1.0 / n / root) / 2;
    double root2 = 1;  // of 2/n
    for (int step = 0; step < 40; ++step) root2 = (root2 + 2.0 / n / root2) / 2;
    table.first[n] = static_cast<float>(root);
    for (int j = 0; j < n; ++j) {
      const bool sine = 2 * j > n;  // of the rest to pi/2, so that the angle is at most pi/4
      const double angle = kPi * (sine ? n - j : j) / (2 * n);
      double term = sine ? angle : 1, sum = term;
      for (int i = sine ? 2 : 1; i < 30; i += 2) {
        term *= -angle * angle / (i * (i + 1));
        sum += term;
      }
      table.cosine[n * (n - 1) / 2 + j] = static_cast<float>(root2 * sum);
    }
  }
  return table;
}

// C_n[u][x].
GCEXT_HD inline float dct_entry(const DctTable& table, int n, int u, int x) {
  if (u == 0) return table.first[n];
  int m = (2 * x + 1) * u % (4 * n);  // of cos(pi m / 2n)
  if (m > 2 * n) m = 4 * n - m;
  const bool negative = m > n;
  if (negative) m = 2 * n - m;
  if (m == n) return 0;
  const float value = table.cosine[n * (n - 1) / 2 + m];
  return negative ? -value : value;
}

// The bodies compiled per instruction set. Buffers of kDctArea hold a block's rows at a stride of
// kMaxDct, zeros from a row's end to the next multiple of kDctPad; aligned to 64 bytes.
constexpr int kDctPad = 16;

struct DctKernels {
  // acc of a block; returns the largest key.
  uint32_t (*gather)(const Source& source, int64_t first, int64_t stride, int h, int w, float* acc);
  // out[i] = sum over the n numbers j of `which` of a[i][j] * b[j], in that order, for i < h; w the
  // length of b's rows.
  void (*multiply)(const float* a, const float* b, int h, const uint8_t* which, int n, int w,
                   float* out);
  // The k of largest key, as u*kMaxDct + v in rising order; returns how many, fewer where there are
  // fewer that are not 0.
  int (*select)(const float* coefficients, int h, int w, int k, int16_t* place);
};

GCEXT_DECLARE_TABLE(DctKernels, dct_kernels)

}  // namespace gcext
