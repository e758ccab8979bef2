// Packets as the kernels that read packets (combine, gram, ..) see them, and the checks of what an
// operator was given.
#pragma once

#include <limits>

#include "../bits.h"
#include "packet_view.h"
#include "stable.h"

namespace gcext {

// What an operator is given beside the packets' values, an entry a packet. A list that no packet
// needs may be empty.
//
//   values   float32   sign bits   levels   powers         codes
//   dtype    float32   uint8       int16    int16          uint8
//   table    -1        -1          -1       kPowerTable    CodeTable
//   scale              theirs               theirs
//   norms                          theirs                  their scales or values
//   steps                          theirs                  their width
//   bucket                         theirs                  theirs
struct CodeLists {
  const std::vector<double>& scale;
  const std::optional<std::vector<Tensor>>& norms;
  const std::vector<int64_t>&steps, &bucket, &table;

  int64_t table_of(size_t packet) const { return packet < table.size() ? table[packet] : -1; }
};

constexpr int64_t kPowerTable = kCodeTables;

// Raises unless the packet has float32 values and, unless dense, as many int32 or int64 indices.
// The indices themselves are not read: on a device that would have to wait for it. With `lists`,
// of which it is packet i, values may also be coded; the view of these has none.
inline PacketView view_packet(const char* op, const Tensor& index, const Tensor& value,
                              int64_t numel, const CodeLists* lists = nullptr, size_t i = 0) {
  const ScalarType type = lists != nullptr ? value.scalar_type() : ScalarType::Float;
  const int64_t table = lists != nullptr ? lists->table_of(i) : -1;
  const bool bits = type == ScalarType::Byte, words = type == ScalarType::Short,
             levels = words && table != kPowerTable;
  const int64_t each = bits && table >= 0 && i < lists->steps.size() ? lists->steps[i] : 1;
  check_dense(value, bits ? ScalarType::Byte : words ? ScalarType::Short : ScalarType::Float, op);
  GCEXT_CHECK(each >= 1 && each <= 16, op, ": codes must be of 1 to 16 bits, got ", each, ".");
  const bool wide = index.scalar_type() == ScalarType::Long;
  GCEXT_CHECK(wide || index.scalar_type() == ScalarType::Int, op,
              ": index must be int32 or int64. Convert it.");
  GCEXT_CHECK(index.is_contiguous(), op, ": index must be contiguous. Call .contiguous() first.");
  const int64_t entries = index.numel(), size = value.numel(),
                bit_values = entries > 0 || size == 0 ? entries : numel,
                values = bits ? bit_values : size;
  GCEXT_CHECK(!bits || (values <= std::numeric_limits<int64_t>::max() / 16 &&
                        size == plane_bytes(values, static_cast<int>(each))),
              op, ": packed values must be one for each of ", values, " values, got ", size,
              " bytes.");
  GCEXT_CHECK(entries == values || (entries == 0 && values == numel && !levels), op,
              ": index and value must have one length, or index none and value numel = ", numel,
              ", got ", entries, " and ", values, ".");
  return {index.const_data_ptr(), bits || words ? nullptr : value.const_data_ptr<float>(), values,
          wide, entries != values};
}

// The same of every packet, and check_rising.
std::vector<PacketView> view_packets(const char* op, const std::vector<Tensor>& index,
                                     const std::vector<Tensor>& value, int64_t numel,
                                     const CodeLists* lists = nullptr);

// Without check_rising: only for a kernel that reaches entries through a Walk.
std::vector<PacketView> view_packets_unchecked(const char* op, const std::vector<Tensor>& index,
                                               const std::vector<Tensor>& value, int64_t numel,
                                               const CodeLists* lists = nullptr);

// The code of every packet. Raises where a list lacks what a packet needs.
std::vector<ValueCode> view_codes(const char* op, const std::vector<PacketView>& packets,
                                  const std::vector<Tensor>& value, const CodeLists& lists,
                                  int64_t numel);

// Raises unless indices rise strictly in [0, numel): after that no kernel can write out of bounds,
// and no two of its threads to one element.
void check_rising(const char* op, const std::vector<PacketView>& packets, int64_t numel);
// The same of packets of different tensors.
void check_rising(const char* op, const std::vector<PacketView>& packets,
                  const std::vector<int64_t>& numel);

// The first entry of the packet whose index is not below `element`.
int64_t first_entry(const PacketView& packet, int64_t element);

// Makes the values [from, until) of a coded packet float32 in `buffer`, which holds 7 more. Returns
// the address that an entry's number leads from to its value, as of PacketView::value.
const float* decode(const PacketView& packet, const ValueCode& code, Span span, float* buffer);

// Calls visit(packet, span) with the packet as one of float32 values: as it is, or where it is
// coded in pieces that stay in the first-level cache, with entries up to the piece's end.
template <class Visit>
void with_values(const PacketView& packet, const ValueCode& code, Span span, const Visit& visit) {
  constexpr int64_t kPiece = 2048;
  if (!code.coded()) return visit(packet, span);
  alignas(64) float buffer[kPiece + 8];
  for (PacketView piece = packet; span.from < span.until; span.from = piece.k) {
    piece.k = std::min(span.until, span.from + kPiece);
    piece.value = decode(packet, code, {span.from, piece.k}, buffer);
    visit(piece, Span{span.from, piece.k});
  }
}

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
