// What every coder of this room needs: a frozen set read and planned, the groups of a source, rows
// of fewer than 64 lanes. Not part of the contract; see polar.h.
#pragma once

#include <cstring>

#include "polar.h"
#include "stable.h"

namespace gcext {

// Code: what a frozen set says: 1 where frozen, of N = 2^levels indices.
struct PolarCode {
  std::vector<PolarOp> op;
  std::vector<uint32_t> free;
  int levels = 0;
  int64_t block() const { return int64_t{1} << levels; }
  int64_t kept() const { return static_cast<int64_t>(free.size()); }
  PolarProgram program() const { return {op.data(), static_cast<int64_t>(op.size()), levels}; }
};

// Free indices before each index; so any node is classified by three looks.
inline void plan(const std::vector<uint32_t>& before, int level, uint32_t at,
                 std::vector<PolarOp>* op) {
  const uint32_t rows = uint32_t{1} << level, half = rows / 2;
  const uint32_t free = before[at + rows] - before[at];
  const auto add = [&](PolarStep step) { op->push_back({step, static_cast<uint8_t>(level), at}); };
  if (free == 0) return add(PolarStep::zero);
  if (free == rows) return add(PolarStep::sign);
  if (free == 1 && before[at + rows - 1] == before[at]) return add(PolarStep::last);
  if (before[at + half] == before[at]) {
    add(PolarStep::sum);
    plan(before, level - 1, at + half, op);
    return add(PolarStep::repeat);
  }
  add(PolarStep::first);
  plan(before, level - 1, at, op);
  add(PolarStep::second);
  plan(before, level - 1, at + half, op);
  add(PolarStep::join);
}

inline PolarCode read_polar_code(const Tensor& frozen) {
  check_dense(frozen, ScalarType::Byte, "polar: frozen");
  const int64_t n = frozen.numel();
  PolarCode code;
  while (code.levels < kMaxPolarLevel && code.block() < n) ++code.levels;
  GCEXT_CHECK(code.block() == n && code.levels >= kMinPolarLevel,
              "polar: block must be a power of two in [2^5, 2^20], got ", n, ". Round it.");
  const uint8_t* is_frozen = frozen.const_data_ptr<uint8_t>();
  std::vector<uint32_t> before(static_cast<size_t>(n) + 1);
  for (int64_t i = 0; i < n; ++i) {
    before[i + 1] = before[i] + (is_frozen[i] == 0);
    if (is_frozen[i] == 0) code.free.push_back(static_cast<uint32_t>(i));
  }
  plan(before, code.levels, 0, &code.op);
  return code;
}

// Rows of `lanes` bits from bit 0 of `from` to one word each, and back. `bits` is how many there
// are; those beyond read as 0. Written bytes: ceil(rows*lanes/8), whole.
inline void spread_rows(const uint8_t* from, int64_t bits, int64_t rows, int64_t lanes,
                        uint64_t* word) {
  int64_t bit = 0;
  for (int64_t i = 0; i < rows; ++i) {
    word[i] = 0;
    for (int64_t j = 0; j < lanes && bit < bits; ++j, ++bit) {
      word[i] |= static_cast<uint64_t>((from[bit / 8] >> (bit % 8)) & 1) << j;
    }
  }
}

inline void gather_rows(const uint64_t* word, int64_t rows, int64_t lanes, int64_t bits,
                        uint8_t* to) {
  std::memset(to, 0, static_cast<size_t>((bits + 7) / 8));
  int64_t bit = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < lanes && bit < bits; ++j, ++bit) {
      to[bit / 8] = static_cast<uint8_t>(to[bit / 8] | (((word[i] >> j) & 1) << (bit % 8)));
    }
  }
}

// The groups of a source of n symbols.
struct PolarGroups {
  int64_t numel, block, count, lanes;  // lanes: of the last group
  PolarGroups(int64_t n, int64_t block) : numel(n), block(block) {
    const int64_t blocks = n / block + (n % block != 0);
    count = blocks / kPolarLanes + (blocks % kPolarLanes != 0);
    lanes = count == 0 ? 0 : blocks - (count - 1) * kPolarLanes;
  }
  int64_t blocks() const { return count == 0 ? 0 : (count - 1) * kPolarLanes + lanes; }
  int64_t start(int64_t group) const { return group * kPolarLanes * block; }
  int64_t symbols(int64_t group) const {
    return std::min(numel - start(group), kPolarLanes * block);
  }
  // Whole: 64 lanes, and no symbol missing.
  bool whole(int64_t group) const { return symbols(group) == kPolarLanes * block; }
  int64_t lanes_of(int64_t group) const { return group + 1 < count ? kPolarLanes : lanes; }
};

}  // namespace gcext
