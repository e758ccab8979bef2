#include "packet.h"

#include <algorithm>
#include <cmath>

#include "../bits.h"
#include "../natural.h"
#include "arguments.h"

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
  return packet.with_index([&](auto* index) { return rises_below(index, packet.k, numel); });
}

// The hardware prefetcher does not follow as many streams as there are packets: asks for the values
// of this tile, and for what may be the indices of the next one.
void prefetch(const PacketView& packet, const Span& span) {
  constexpr int64_t kMost = 256, kLine = 16;  // entries; float32 of a line
  const int64_t size = std::min(span.size(), kMost), width = packet.wide ? 8 : 4;
  const char* index = static_cast<const char*>(packet.index) + span.until * width;
  for (int64_t i = 0; i < size; i += kLine) {
    if (packet.value != nullptr) __builtin_prefetch(packet.value + span.from + i);
    __builtin_prefetch(index + i * width);
  }
}

// What the values of packet i are, each of its own dtype; of m packets.
struct CodeOf {
  const char* op;
  const CodeLists& lists;
  size_t i, m;
  const Tensor& value;

  float scale() const {
    GCEXT_CHECK(lists.scale.size() == m && std::isfinite(lists.scale[i]) && lists.scale[i] >= 0, op,
                ": sign bits and powers need a scale, finite and not negative, packet ", i,
                " has none.");
    return static_cast<float>(lists.scale[i]);
  }

  const Tensor& norms(const char* what) const {
    GCEXT_CHECK(lists.norms.has_value() && lists.norms->size() == m && lists.steps.size() == m &&
                    lists.bucket.size() == m,
                op, ": ", what, " need norms, steps and a bucket, packet ", i, " has none.");
    return (*lists.norms)[i];
  }

  ValueCode signs() const {
    ValueCode code;
    code.scale = scale();
    code.bits = value.const_data_ptr<uint8_t>();
    return code;
  }

  ValueCode levels(int64_t numel) const {
    const Tensor& own = norms("levels");
    const int64_t steps = lists.steps[i], bucket = lists.bucket[i];
    check_dense(own, ScalarType::Float, op);
    GCEXT_CHECK(
        steps >= 1 && bucket >= 0 && own.numel() >= (bucket == 0 ? 1 : (numel - 1) / bucket + 1),
        op, ": norms must cover every element, got ", own.numel(), " for ", numel,
        " in buckets of ", bucket, ", and steps ", steps, ".");
    ValueCode code;
    code.level = value.const_data_ptr<int16_t>();
    code.norm = own.const_data_ptr<float>();
    code.bucket = bucket;
    code.steps = static_cast<double>(steps);
    return code;
  }

  ValueCode powers() const {
    ValueCode code;
    code.scale = scale();
    code.power = value.const_data_ptr<int16_t>();
    const int64_t n = value.numel(), parts = parts_for(n, kSerial);
    std::vector<char> within(static_cast<size_t>(parts));
    parallel_parts(parts, [&](int64_t part) {
      const int64_t first = n * part / parts;
      within[static_cast<size_t>(part)] =
          GCEXT_TABLE(natural_table).within(code.power + first, n * (part + 1) / parts - first);
    });
    GCEXT_CHECK(std::count(within.begin(), within.end(), 0) == 0, op, ": powers must be in [-",
                kPowers - 1, ", ", kPowers - 1, "], packet ", i, " has another.");
    return code;
  }

  ValueCode codes(int64_t k) const {
    const Tensor& scales = norms("codes");
    const int64_t table = lists.table[i], width = lists.steps[i], bucket = lists.bucket[i];
    check_code_values(value, scales, k, table, width, bucket);
    ValueCode code;
    code.codes = {
        value.const_data_ptr<uint8_t>(), scales.const_data_ptr<float>(), value.numel(), bucket,
        static_cast<CodeTable>(table),   static_cast<int>(width)};
    return code;
  }

  ValueCode of(const PacketView& packet, int64_t numel) const {
    if (packet.value != nullptr || packet.k == 0) return {};
    const bool bytes = value.scalar_type() == ScalarType::Byte;
    const int64_t table = lists.table_of(i);
    GCEXT_CHECK(table < 0 || (table <= kPowerTable && bytes == (table != kPowerTable)), op,
                ": table must be at most ", kPowerTable, ", which is that of int16 values, got ",
                table, ".");
    if (table < 0) return bytes ? signs() : levels(numel);
    return bytes ? codes(packet.k) : powers();
  }
};

}  // namespace

std::vector<PacketView> view_packets(const char* op, const std::vector<Tensor>& index,
                                     const std::vector<Tensor>& value, int64_t numel,
                                     const CodeLists* lists) {
  std::vector<PacketView> packets = view_packets_unchecked(op, index, value, numel, lists);
  check_rising(op, packets, numel);
  return packets;
}

std::vector<PacketView> view_packets_unchecked(const char* op, const std::vector<Tensor>& index,
                                               const std::vector<Tensor>& value, int64_t numel,
                                               const CodeLists* lists) {
  GCEXT_CHECK(numel >= 0, op, ": numel must not be negative, got ", numel, ".");
  GCEXT_CHECK(index.size() == value.size(), op, ": needs an index for every value, got ",
              index.size(), " and ", value.size(), ".");
  std::vector<PacketView> packets;
  packets.reserve(value.size());
  for (size_t i = 0; i < value.size(); ++i)
    packets.push_back(view_packet(op, index[i], value[i], numel, lists, i));
  return packets;
}

std::vector<ValueCode> view_codes(const char* op, const std::vector<PacketView>& packets,
                                  const std::vector<Tensor>& value, const CodeLists& lists,
                                  int64_t numel) {
  const KernelFpEnv env;  // a scale may be denormal
  const size_t m = value.size();
  std::vector<ValueCode> codes;
  codes.reserve(m);
  for (size_t i = 0; i < m; ++i)
    codes.push_back(CodeOf{op, lists, i, m, value[i]}.of(packets[i], numel));
  return codes;
}

const float* decode(const PacketView& packet, const ValueCode& code, Span span, float* buffer) {
  const int64_t first = span.from & ~int64_t{7};  // bits are read by the byte
  if (code.bits != nullptr) {
    bits().unpack_signs(code.bits + first / 8, span.until - first, code.scale, buffer);
  } else if (code.codes.bits != nullptr) {
    decode_codes(code.codes, first, span.until, buffer);
  } else if (code.power != nullptr) {
    GCEXT_TABLE(natural_table)
        .values(code.power + span.from, span.size(), code.scale, buffer + (span.from - first));
  } else {
    GCEXT_TABLE(walk_table).levels(packet, code, span, buffer + (span.from - first));
  }
  return buffer - first;
}

void check_rising(const char* op, const std::vector<PacketView>& packets, int64_t numel) {
  check_rising(op, packets, std::vector<int64_t>(packets.size(), numel));
}

void check_rising(const char* op, const std::vector<PacketView>& packets,
                  const std::vector<int64_t>& numel) {
  const int64_t m = static_cast<int64_t>(packets.size());
  int64_t entries = 0;
  for (const PacketView& packet : packets) entries += packet.dense ? 0 : packet.k;
  const int64_t parts = std::min(parts_for(entries, kSerial), std::max<int64_t>(m, 1));
  std::vector<char> rises(packets.size());
  parallel_parts(parts, [&](int64_t part) {
    for (int64_t i = part; i < m; i += parts) rises[i] = rises_below(packets[i], numel[i]);
  });
  const int64_t wrong = std::find(rises.begin(), rises.end(), false) - rises.begin();
  GCEXT_CHECK(wrong == m, op, ": the indices of a packet must rise strictly within [0, ",
              wrong == m ? 0 : numel[wrong], "), packet ", wrong,
              " does not. Sort them and sum what repeats.");
}

int64_t first_entry(const PacketView& packet, int64_t element) {
  return packet.with_index([&](auto* index) -> int64_t {
    return std::lower_bound(index, index + packet.k, element) - index;
  });
}

Walk::Walk(const std::vector<PacketView>& packets, int64_t first, int64_t last, int64_t numel,
           std::atomic<bool>* rising)
    : packets_(packets), last_(last), numel_(numel), rising_(rising), span_(packets.size()) {
  for (size_t i = 0; i < packets.size(); ++i) {
    if (packets[i].dense) continue;
    // Whatever the indices say, the one found is not below `first`.
    span_[i].until = first_entry(packets[i], first);
    if (first == 0 && span_[i].until > 0) *rising_ = false;
  }
}

Walk::~Walk() {
  for (size_t i = 0; i < packets_.size(); ++i) {
    const PacketView& packet = packets_[i];
    if (packet.dense) continue;
    const int64_t end = last_ == numel_ ? packet.k : first_entry(packet, last_);
    if (span_[i].until != end) *rising_ = false;
  }
}

const Span& Walk::enter(int64_t i, int64_t end) {
  const PacketView& packet = packets_[i];
  Span& span = span_[i];
  if (packet.dense) return span;
  span.from = span.until;
  bool rises = true;
  span.until = table_.pass(packet, span.from, end, &rises);
  if (!rises) {
    *rising_ = false;
    span = {packet.k, packet.k};
  }
  if (span.until < packet.k)
    next_ = std::min(next_,
                     packet.with_index([&](auto* index) -> int64_t { return index[span.until]; }));
  prefetch(packet, span);
  return span;
}

}  // namespace gcext
