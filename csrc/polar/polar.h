// polar: lossy source coding by polar codes (Korada & Urbanke 2010, arXiv:0903.0307). The
// successive-cancellation decoder of the channel code is the encoder, the polar transform the
// decoder.
//
//   block     N = 2^n symbols            x = u G_N,  G_N = [[1,0],[1,1]]^(x)n  (its own inverse)
//   message   the K bits u_i of the free i, in order; u_i = 0 where i is frozen
//   encode    for i = 0 .. N-1: u_i = 0 if i is frozen or L_i >= 0, else 1, where L_i is the LLR of
//             u_i given the source and u_0 .. u_(i-1)
//
// The LLRs are 8-bit integers in [-127, 127], positive for a 0. With a the first and b the second
// half of a node, |.| and min on magnitudes, and u the first half's decided codeword:
//
//   f(a, b)    = sign(a) sign(b) (min(|a|,|b|) - e)       for the first half
//   g(a, b, u) = clamp(b + (u ? -a : a))                  for the second half
//   e = (max(0, c - ||a|-|b||) - max(0, c - (|a|+|b|)) + 2) >> 2
//
// c = 0 is min-sum. c > 0 is the linear correction: ln(1 + exp(-z)) ~ max(0, ln 2 - z/4) where c/4
// steps are ln 2. A node whose indices are all free takes the sign of each LLR (negative: 1), which
// is what the recursion gives but for ties. Source symbols without a weight have the LLR 0.
//
// Blocks are coded 64 at a time, a *lane* each. A group of 64*N symbols is cut into N rows of 64,
// and row i holds symbol i of every lane: a word of sign bits, or 64 bytes of LLRs. Nothing is
// transposed: the rows are the source's own words. The message of a group is K rows.
//
//   symbol   0 1 2 .. 63 | 64 65 .. 127 | ..        row 0 | row 1 | ..
//   lane     0 1 2 .. 63 |  0  1 ..  63 | ..
//
// What is left after the whole groups makes one group of B = ceil(rest/N) lanes in rows of B,
// padded at its end with symbols without a weight; so a message has K*ceil(n/N) bits, lowest bit
// first.
//
// A source of real values is scaled group by group: LLR = rint(value * (q * count / sum |value|)),
// the sum in float32 by lanes, rows in order, the lanes added in order in float64.
#pragma once

#include "../common/isa.h"
#include "../common/scalar.h"

namespace gcext {

constexpr int kPolarLanes = 64;
constexpr int kMinPolarLevel = 5, kMaxPolarLevel = 20;

// The groups of a source of n symbols.
struct PolarGroups {
  int64_t numel, block, count, lanes;  // lanes: of the last group
  PolarGroups(int64_t n, int64_t block) : numel(n), block(block) {
    const int64_t blocks = n / block + (n % block != 0);
    count = blocks / kPolarLanes + (blocks % kPolarLanes != 0);
    lanes = count == 0 ? 0 : blocks - (count - 1) * kPolarLanes;
  }
  GCEXT_HD int64_t blocks() const { return count == 0 ? 0 : (count - 1) * kPolarLanes + lanes; }
  GCEXT_HD int64_t start(int64_t group) const { return group * kPolarLanes * block; }
  GCEXT_HD int64_t symbols(int64_t group) const {
    const int64_t rest = numel - start(group);
    return rest < kPolarLanes * block ? rest : kPolarLanes * block;
  }
  // Whole: 64 lanes, and no symbol missing.
  GCEXT_HD bool whole(int64_t group) const { return symbols(group) == kPolarLanes * block; }
  GCEXT_HD int64_t lanes_of(int64_t group) const { return group + 1 < count ? kPolarLanes : lanes; }
  GCEXT_HD int64_t message_bytes(int64_t kept) const { return (kept * blocks() + 7) / 8; }
};

// The rules f and g on one pair; g is clamp of b + a or b - a.
GCEXT_HD inline int polar_first(int a, int b, int c) {
  const int p = a < 0 ? -a : a, q = b < 0 ? -b : b;
  const int m = p < q ? p : q, apart = p < q ? q - p : p - q;
  const int near = c > apart ? c - apart : 0, far = c > p + q ? c - p - q : 0;
  const int size = m - ((near - far + 2) >> 2);
  return (a ^ b) < 0 ? -size : size;
}

GCEXT_HD inline int polar_clamp(int sum) { return sum > 127 ? 127 : sum < -127 ? -127 : sum; }

// An LLR of a value that is scaled already, not a NaN. 1.5 * 2^23: the addition rounds to the
// nearest integer, ties to even, into the low bits.
GCEXT_HD inline int8_t polar_quantised(float x) {
  x = x > 127.0f ? 127.0f : x;
  x = x < -127.0f ? -127.0f : x;
  return static_cast<int8_t>(bits_of(x + 12582912.0f));
}

// What brings a group's sum of magnitudes, which is huge, tiny or overflowed, into range: 2^+-64.
GCEXT_HD inline float polar_factor(double sum) {
  if (sum <= 1e30 && sum >= 1e-24) return 1.0f;
  return sum < 1 ? 0x1p64f : 0x1p-64f;
}

GCEXT_HD inline float polar_scale(double sum, double weight, int64_t count) {
  return sum > 0 ? static_cast<float>(weight * static_cast<double>(count) / sum) : 0.0f;
}

// The tree of the code without what needs no work, in the order of execution. `level`: the node has
// 2^level rows; `at`: its first row.
enum class PolarStep : uint8_t {
  first,   // LLRs of the first half by f
  second,  // LLRs of the second half by g, given the first half
  sum,     // LLRs of the second half by g where the first half is frozen: a + b
  join,    // codeword = (first ^ second, second)
  repeat,  // the same where the first half is frozen: (second, second)
  zero,    // leaf: all frozen
  sign,    // leaf: all free
  last,    // leaf: all frozen but the last, a repetition code
};

struct PolarOp {
  PolarStep step;
  uint8_t level;
  uint32_t at;
};

struct PolarProgram {
  const PolarOp* op;
  int64_t count;
  int levels;  // n
};

// Memory for one group. LLRs of a node of 2^l rows stand at llr + 64 * 2^l, so the root's (N rows)
// start at llr + 64*N; llr is aligned to 64 bytes and has 2*N rows. codeword: N words.
struct PolarWork {
  int8_t* llr;
  uint64_t* codeword;
};

// What is read next; may be empty.
struct PolarAhead {
  const char* at;
  int64_t bytes;
};

struct PolarTable {
  // One group: from LLRs at llr + 64*N, or where `source` is not null from N words of signs, each
  // worth `weight` steps. Writes K words of message. correction: c. The bytes of `ahead` are
  // prefetched meanwhile: the tree leaves the memory idle.
  void (*encode)(const PolarProgram& program, const uint64_t* source, int8_t weight, int correction,
                 PolarWork work, uint64_t* message, PolarAhead ahead);
  // x = u G_N on words, in place; n: a power of two.
  void (*transform)(uint64_t* word, int64_t n);
  // sum[j] = sum over rows of |value[64*i + j] * factor|
  void (*magnitudes)(const float* value, int64_t rows, float factor, float* sum);
  // llr = clamp(rint((value * factor) * scale)); llr is aligned to 64 bytes
  void (*quantise)(const float* value, int64_t rows, float factor, float scale, int8_t* llr);
  // One bit a byte (any non-zero is a one) to packed bits, lowest first, and back; n a multiple
  // of 8.
  void (*pack)(const uint8_t* symbol, int64_t n, uint8_t* packed);
  void (*unpack)(const uint8_t* packed, int64_t n, uint8_t* symbol);
};

GCEXT_DECLARE_TABLE(PolarTable, polar_table)

}  // namespace gcext
