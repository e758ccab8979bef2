// Packets as the kernels that read packets (combine, gram, ..) see them, and the checks of what an
// operator was given.
#pragma once

#include <limits>

#include "packet_view.h"
#include "stable.h"

namespace gcext {

// Raises unless the packet has float32 values and, unless dense, as many int32 or int64 indices.
// The indices themselves are not read: on a device that would have to wait for it.
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

// The same of every packet, and check_rising.
std::vector<PacketView> view_packets(const char* op, const std::vector<Tensor>& index,
                                     const std::vector<Tensor>& value, int64_t numel);

// Without check_rising: only for a kernel that reaches entries through a Walk.
std::vector<PacketView> view_packets_unchecked(const char* op, const std::vector<Tensor>& index,
                                               const std::vector<Tensor>& value, int64_t numel);

// Raises unless indices rise strictly in [0, numel): after that no kernel can write out of bounds,
// and no two of its threads to one element.
void check_rising(const char* op, const std::vector<PacketView>& packets, int64_t numel);

// The first entry of the packet whose index is not below `element`.
int64_t first_entry(const PacketView& packet, int64_t element);

// Goes through the elements [first, last) of all packets, a tile at a time, and clears *rising
// where the indices do not rise strictly in [0, numel). A packet in which they do not has no
// entries from there on: no kernel is led out of its tile. When all parts of [0, numel) were walked
// and *rising is false, check_rising raises.
class Walk {
 public:
  Walk(const std::vector<PacketView>& packets, int64_t first, int64_t last, int64_t numel,
       std::atomic<bool>* rising);
  ~Walk();  // checks that the next part starts where this one ends
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;

  // The packet's entries up to the element `end`, where its tile ends. None of a dense one.
  const Span& enter(int64_t packet, int64_t end);
  const Span& operator[](int64_t packet) const { return span_[packet]; }
  // The first element behind the tile that has an entry, or the greatest number; when all packets
  // have entered it.
  int64_t next() {
    const int64_t next = next_;
    next_ = kNever;
    return next;
  }

 private:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  const WalkTable& table_ = GCEXT_TABLE(walk_table);
  int64_t next_ = kNever;
  const std::vector<PacketView>& packets_;
  const int64_t last_, numel_;
  std::atomic<bool>* rising_;
  std::vector<Span> span_;
};

}  // namespace gcext
