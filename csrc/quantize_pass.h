// How kernels of a sum go over it on the CPU: cell by cell, a contiguous range of cells a thread;
// and what they report of a sum that is not finite.
#pragma once

#include <cmath>
#include <cstring>

#include "common/stable.h"
#include "quantize.h"

namespace gcext {

constexpr int64_t kGrain = 32768;     // elements that are worth a thread
constexpr int64_t kCached = 1 << 20;  // elements of an output that may stay in the cache

struct Cell {
  int64_t part, index, begin, size;
  uint32_t top;  // the largest key of its sums
  Ahead ahead;   // what the next cell reads
};

// Part `part` of `parts`: runs body(cell, acc) for each of its cells and the cell's sums, which the
// body may change.
template <class Body>
void for_part(const QuantizeTable& table, const HostSource& source, const Cells& cells,
              int64_t part, int64_t parts, const Body& body) {
  const int64_t count = cells.count();
  alignas(64) float acc[kCell];
  for (int64_t cell = count * part / parts; cell < count * (part + 1) / parts; ++cell) {
    const int64_t begin = cells.begin(cell), size = cells.size(cell);
    const uint32_t top = table.accumulate(source, begin, size, acc);
    body(Cell{part, cell, begin, size, top, Ahead(source, begin + size)}, acc);
  }
}

// All parts, each on a thread.
template <class Body>
void for_cells(const QuantizeTable& table, const HostSource& source, const Cells& cells,
               int64_t parts, const Body& body) {
  parallel_parts(parts, [&](int64_t part) { for_part(table, source, cells, part, parts, body); });
}

// Writes some of an output of n elements in all, which was not read.
template <class T>
void put(const QuantizeTable& table, int64_t n, const T* from, int64_t count, T* to) {
  if (count == 0) return;  // there may be no memory either
  const auto bytes = static_cast<size_t>(count) * sizeof(T);
  n > kCached ? table.bypass(from, bytes, to) : void(std::memcpy(to, from, bytes));
}

// Writes a range of the new memory out, of n elements in all.
inline void store(const QuantizeTable& table, const HostSource& source, int64_t n, int64_t begin,
                  int64_t size, const float* acc) {
  put(table, in_place(source) ? 0 : n, acc, size, source.out + begin);
}
inline void store(const QuantizeTable& table, const HostSource& source, int64_t n, const Cell& cell,
                  const float* acc) {
  store(table, source, n, cell.begin, cell.size, acc);
}

// Step by step over the sums; false where one of them is not finite, a cell of which the body never
// sees.
template <class Body>
bool all_finite(const QuantizeTable& table, const HostSource& source, const Cells& cells,
                int64_t parts, const Body& body) {
  std::vector<uint32_t> tops(static_cast<size_t>(parts));
  for_cells(table, source, cells, parts, [&](const Cell& cell, float* acc) {
    uint32_t& top = tops[static_cast<size_t>(cell.part)];
    top = std::max(top, cell.top);
    if (cell.top < kInfKey) body(cell, acc);
  });
  return std::all_of(tops.begin(), tops.end(), [](uint32_t top) { return top < kInfKey; });
}

// Whether a pass may write as it goes: where out is the memory all sums are validated first.
inline bool may_write(const QuantizeTable& table, const HostSource& source, const Cells& cells,
                      int64_t parts) {
  return !in_place(source) ||
         all_finite(table, source, cells, parts, [](const Cell&, const float*) {});
}

// Reports why the first sum that is not finite, of these n elements, is not.
inline void report(const HostSource& source, int64_t n, int64_t* info) {
  const auto first = [&](const auto& x) {
    int64_t i = 0;
    while (i < n && std::isfinite(x(i))) ++i;
    return i;
  };
  info[kInfoStatus] = kSelectTensor;
  info[kInfoWhere] = first([&](int64_t i) { return tensor_at(source, i); });
  if (info[kInfoWhere] < n) return;
  info[kInfoStatus] = kSelectMemory;
  info[kInfoWhere] = first([&](int64_t i) { return source.memory[i]; });
  if (info[kInfoWhere] < n) return;
  info[kInfoStatus] = kSelectOverflow;
  info[kInfoWhere] =
      first([&](int64_t i) { return tensor_at(source, i) + source.b * source.memory[i]; });
}

inline Tensor no_info(const Tensor& tensor) {
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  std::fill_n(info.mutable_data_ptr<int64_t>(), int64_t{kInfoSize}, int64_t{0});
  return info;
}

}  // namespace gcext
