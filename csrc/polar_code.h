// What every coder of this room needs: checks, a frozen set read and planned, rows of fewer than 64
// lanes. Not part of the contract; see polar.h.
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

// What every encoder demands; true where the source is of real values.
inline bool check_polar_source(const Tensor& source, int64_t numel) {
  const bool soft = source.scalar_type() == ScalarType::Float;
  check_dense(source, soft ? ScalarType::Float : ScalarType::Byte, "polar: source");
  GCEXT_CHECK(numel >= 0 && source.numel() == (soft ? numel : (numel + 7) / 8),
              "polar: source must hold numel symbols, got ", source.numel(), " elements for ",
              numel, ". Pass float32 values or packed bits.");
  return soft;
}

inline void check_polar_steps(double weight, int64_t correction) {
  GCEXT_CHECK(weight > 0 && weight <= 127, "polar: weight must be in (0, 127], got ", weight, ".");
  GCEXT_CHECK(correction >= 0 && correction <= 127, "polar: correction must be in [0, 127], got ",
              correction, ".");
}

inline void check_polar_free(int64_t free, int64_t zeros) {
  GCEXT_CHECK(free == zeros, "polar: free must be the number of zeros in frozen, got ", free,
              " for ", zeros, ".");
}

inline int check_polar_block(int64_t block) {
  int levels = kMinPolarLevel;
  while (levels < kMaxPolarLevel && int64_t{1} << levels < block) ++levels;
  GCEXT_CHECK(block == int64_t{1} << levels,
              "polar: block must be a power of two in [2^5, 2^20], got ", block, ". Round it.");
  return levels;
}

inline void check_polar_packed(const Tensor& packed, int64_t numel) {
  check_dense(packed, ScalarType::Byte, "polar: packed");
  GCEXT_CHECK(numel >= 0 && packed.numel() == (numel + 7) / 8,
              "polar: packed must have a bit a symbol, got ", packed.numel(), " bytes for ", numel,
              ".");
}

inline PolarCode read_polar_code(const Tensor& frozen) {
  check_dense(frozen, ScalarType::Byte, "polar: frozen");
  const int64_t n = frozen.numel();
  PolarCode code;
  code.levels = check_polar_block(n);
  const uint8_t* is_frozen = frozen.const_data_ptr<uint8_t>();
  std::vector<uint32_t> before(static_cast<size_t>(n) + 1);
  for (int64_t i = 0; i < n; ++i) {
    before[i + 1] = before[i] + (is_frozen[i] == 0);
    if (is_frozen[i] == 0) code.free.push_back(static_cast<uint32_t>(i));
  }
  plan(before, code.levels, 0, &code.op);
  return code;
}

}  // namespace gcext
