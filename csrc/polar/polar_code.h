// What every coder of polar needs: checks, a frozen set read and planned, rows of fewer than 64
// lanes. Not part of the contract; see polar.h.
#pragma once

#include <cmath>
#include <cstring>
#include <tuple>

#include "../common/stable.h"
#include "polar.h"

namespace gcext {

// The code of a frozen set, which is 1 where frozen, of N = 2^levels indices.
struct PolarCode {
  std::vector<PolarOp> op;
  std::vector<uint32_t> free;
  int levels = 0;
  int64_t block() const { return int64_t{1} << levels; }
  int64_t kept() const { return static_cast<int64_t>(free.size()); }
  PolarProgram program() const { return {op.data(), static_cast<int64_t>(op.size()), levels}; }
};

// `before`: free indices before each index; three of them classify a node.
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
inline void read_rows(const uint8_t* from, int64_t bits, int64_t rows, int64_t lanes,
                      uint64_t* word) {
  if (rows == 0) return;  // an empty tensor has no address, which memcpy must not be given
  std::memset(word, 0, static_cast<size_t>(rows) * sizeof *word);
  if (bits == kPolarLanes * rows) {
    std::memcpy(word, from, static_cast<size_t>(rows) * sizeof *word);
    return;
  }
  int64_t bit = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < lanes && bit < bits; ++j, ++bit)
      word[i] |= static_cast<uint64_t>((from[bit / 8] >> (bit % 8)) & 1) << j;
}

inline void write_rows(const uint64_t* word, int64_t rows, int64_t lanes, int64_t bits,
                       uint8_t* to) {
  if (rows == 0) return;
  if (bits == kPolarLanes * rows) {
    std::memcpy(to, word, static_cast<size_t>(rows) * sizeof *word);
    return;
  }
  std::memset(to, 0, static_cast<size_t>((bits + 7) / 8));
  int64_t bit = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < lanes && bit < bits; ++j, ++bit)
      to[bit / 8] |= static_cast<uint8_t>(((word[i] >> j) & 1) << (bit % 8));
}

// True where the source is of real values.
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

inline int polar_level(int64_t block) {
  return check_power_of_two("polar: block", block, kMinPolarLevel, kMaxPolarLevel);
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
  code.levels = polar_level(n);
  const uint8_t* is_frozen = frozen.const_data_ptr<uint8_t>();
  std::vector<uint32_t> before(static_cast<size_t>(n) + 1);
  for (int64_t i = 0; i < n; ++i) {
    before[i + 1] = before[i] + (is_frozen[i] == 0);
    if (is_frozen[i] == 0) code.free.push_back(static_cast<uint32_t>(i));
  }
  plan(before, code.levels, 0, &code.op);
  return code;
}

// What the encoders on the CPU share: arguments checked, results allocated.
class PolarEncoding {
 public:
  PolarEncoding(const Tensor& source, const Tensor& frozen, int64_t free, int64_t numel)
      : soft(check_polar_source(source, numel)),
        code(read_polar_code(frozen)),
        groups(numel, code.block()),
        source(source.const_data_ptr()) {
    GCEXT_CHECK(free == code.kept(), "polar: free must be the number of zeros in frozen, got ",
                free, " for ", code.kept(), ".");
    message_ = empty(groups.message_bytes(code.kept()), ScalarType::Byte, source);
    bad_ = empty(1, ScalarType::Long, source);
    to_ = message_.mutable_data_ptr<uint8_t>();
  }

  const bool soft;  // the source is of real values, else of packed bits
  const PolarCode code;
  const PolarGroups groups;
  const void* const source;
  std::atomic<bool> finite{true};

  const float* values() const { return static_cast<const float*>(source); }
  const uint8_t* packed() const { return static_cast<const uint8_t*>(source); }

  // The rows of a group's message.
  void write(int64_t group, const uint64_t* rows) {
    const int64_t kept = code.kept(), lanes = groups.lanes_of(group);
    write_rows(rows, kept, lanes, kept * lanes, to_ + group * kept * 8);
  }

  // The message, and the first index of a value that is not finite, or -1.
  std::tuple<Tensor, Tensor> result() {
    int64_t at = finite ? -1 : 0;
    while (at >= 0 && std::isfinite(values()[at])) ++at;
    *bad_.mutable_data_ptr<int64_t>() = at;
    return {message_, bad_};
  }

 private:
  Tensor message_, bad_;
  uint8_t* to_;
};

}  // namespace gcext
