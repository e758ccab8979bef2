#include "packet.h"

namespace gcext {
namespace {

constexpr int64_t kSerial = 1 << 16;  // entries that one thread checks sooner than two

// Wrapped subtraction, not comparison: baseline x86-64 compares no 64-bit integers in vectors.
template <class Int>
bool rises_below(const Int* index, int64_t n, int64_t numel) {
  using Unsigned = std::make_unsigned_t<Int>;
  if (n == 0) return true;
  if (index[0] < 0 || index[n - 1] >= numel) return false;
  Unsigned fell = 0;  // the top bit is set by a negative index and by a step that does not rise
  for (int64_t i = 1; i < n; ++i) {
    const Unsigned low = static_cast<Unsigned>(index[i - 1]),
                   high = static_cast<Unsigned>(index[i]);
    fell |= (high - low - 1) | high;
  }
  return fell >> (8 * sizeof(Int) - 1) == 0;
}

bool rises_below(const PacketView& packet, int64_t numel) {
  if (packet.dense) return true;
  return packet.wide ? rises_below(packet.index64(), packet.k, numel)
                     : rises_below(packet.index32(), packet.k, numel);
}

}  // namespace

std::vector<PacketView> view_packets(const char* op, const std::vector<Tensor>& index,
                                     const std::vector<Tensor>& value, int64_t numel) {
  GCEXT_CHECK(numel >= 0, op, ": numel must not be negative, got ", numel, ".");
  GCEXT_CHECK(index.size() == value.size(), op, ": needs an index for every value, got ",
              index.size(), " and ", value.size(), ".");
  const int64_t m = static_cast<int64_t>(value.size());
  std::vector<PacketView> packets;
  packets.reserve(value.size());
  int64_t entries = 0;
  for (int64_t i = 0; i < m; ++i) {
    packets.push_back(view_packet(op, index[i], value[i], numel));
    entries += packets[i].dense ? 0 : packets[i].k;
  }
  const int64_t parts = std::min(parts_for(entries, kSerial), std::max<int64_t>(m, 1));
  std::atomic<int64_t> wrong{m};
  parallel_parts(parts, [&](int64_t part) {
    for (int64_t i = part; i < m; i += parts) {
      if (rises_below(packets[i], numel)) continue;
      int64_t first = wrong.load();
      while (i < first && !wrong.compare_exchange_weak(first, i)) {
      }
    }
  });
  GCEXT_CHECK(wrong == m, op, ": the indices of a packet must rise strictly within [0, ", numel,
              "), packet ", wrong.load(), " does not. Sort them and sum what repeats.");
  return packets;
}

int64_t first_entry(const PacketView& packet, int64_t element) {
  const auto search = [&](const auto* index) {
    return std::lower_bound(index, index + packet.k, element) - index;
  };
  return packet.wide ? search(packet.index64()) : search(packet.index32());
}

}  // namespace gcext
