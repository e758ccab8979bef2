// Packets as the server's kernels (combine, gram) see them, and the one check of what an operator
// was given.
#pragma once

#include "combine.h"
#include "stable.h"

namespace gcext {

// Raises unless the packet has float32 values and, unless dense, as many int32 or int64 indices.
// What the indices say is not looked at: on a device that would have to wait for it.
inline PacketView view_packet(const char* op, const Tensor& index, const Tensor& value,
                              int64_t numel) {
  check_dense(value, ScalarType::Float, op);
  const bool wide = index.scalar_type() == ScalarType::Long;
  GCEXT_CHECK(wide || index.scalar_type() == ScalarType::Int, op,
              ": index must be int32 or int64. Convert it.");
  GCEXT_CHECK(index.is_contiguous(), op, ": index must be contiguous. Call .contiguous() first.");
  const int64_t entries = index.numel(), values = value.numel();
  GCEXT_CHECK(entries == values || (entries == 0 && values == numel), op,
              ": index and value must have one length, or index none and value numel = ", numel,
              ", got ", entries, " and ", values, ".");
  return {index.const_data_ptr(), value.const_data_ptr<float>(), values, wide, entries != values};
}

// The same of every packet, and raises unless indices rise strictly in [0, numel): after that no
// kernel can write out of bounds, and no two of its threads to one element.
std::vector<PacketView> view_packets(const char* op, const std::vector<Tensor>& index,
                                     const std::vector<Tensor>& value, int64_t numel);

// The first entry of the packet whose index is not below `element`.
int64_t first_entry(const PacketView& packet, int64_t element);

}  // namespace gcext
