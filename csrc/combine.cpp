#include "combine.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <utility>

#include "common/arguments.h"
#include "common/packet.h"
#include "common/pool.h"
#include "select/select.h"

namespace gcext {
namespace {

constexpr int64_t kTilesPerThread = 2;  // 32,768 elements are worth a thread
constexpr int64_t kEntriesPerThread = 1 << 15;

// Tiles [first, last) of the sum.
void combine_tiles(const std::vector<PacketView>& packets, const std::vector<ValueCode>& codes,
                   const std::vector<double>& weights, int64_t numel, int64_t first, int64_t last,
                   float* out) {
  const CombineTable& table = GCEXT_TABLE(combine_table);
  std::vector<int64_t> cursor(packets.size());
  for (size_t i = 0; i < packets.size(); ++i)
    if (!packets[i].dense) cursor[i] = first_entry(packets[i], first * kCombineTile);
  const bool lone = packets.size() == 1 && !packets[0].dense;
  const bool dense = std::all_of(packets.begin(), packets.end(),
                                 [](const PacketView& packet) { return packet.dense; });
  const int64_t tile = dense ? kDenseTile : kCombineTile;
  std::vector<double> sum(lone ? 0 : static_cast<size_t>(tile));
  for (int64_t begin = first * kCombineTile; begin < std::min(numel, last * kCombineTile);
       begin += tile) {
    const int64_t end = std::min(numel, begin + tile), n = end - begin;
    const auto entries = [&](size_t i, const auto& visit) {  // of a sparse packet, in this tile
      const int64_t until = codes[i].coded() ? first_entry(packets[i], end) : packets[i].k;
      with_values(packets[i], codes[i], {cursor[i], until}, visit);
    };
    if (lone) {
      std::memset(out + begin, 0, static_cast<size_t>(n) * sizeof(float));
      entries(0, [&](const PacketView& packet, Span span) {
        cursor[0] = table.place(packet, span.from, begin, end, weights[0], out + begin);
      });
      continue;
    }
    bool touched = false;  // the scratch is all zeros as long as nothing touched it
    for (size_t i = 0; i < packets.size(); ++i) {
      if (packets[i].dense) {
        with_values(packets[i], codes[i], {begin, end}, [&](const PacketView& packet, Span span) {
          table.add_dense(packet.value + span.from, span.size(), weights[i],
                          sum.data() + (span.from - begin));
        });
        touched = true;
      } else {
        const int64_t from = cursor[i];
        entries(i, [&](const PacketView& packet, Span span) {
          cursor[i] = table.add(packet, span.from, begin, end, weights[i], sum.data());
        });
        touched |= cursor[i] > from;
      }
    }
    if (touched) {
      table.round(sum.data(), n, out + begin);
    } else {
      std::memset(out + begin, 0, static_cast<size_t>(n) * sizeof(float));
    }
  }
}

Tensor combine(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
               const std::vector<double>& weights, int64_t numel, const std::vector<double>& scale,
               const std::optional<std::vector<Tensor>>& norms, const std::vector<int64_t>& steps,
               const std::vector<int64_t>& bucket, const std::vector<int64_t>& table) {
  const CodeLists lists{scale, norms, steps, bucket, table};
  const std::vector<PacketView> packets = view_packets("combine", index, value, numel, &lists);
  const std::vector<ValueCode> codes = view_codes("combine", packets, value, lists, numel);
  GCEXT_CHECK(weights.size() == packets.size(), "combine: needs a weight for every packet, got ",
              weights.size(), " for ", packets.size(), ".");
  return fill_tiles(numel, kCombineTile, kTilesPerThread,
                    [&](int64_t first, int64_t last, float* out) {
                      combine_tiles(packets, codes, weights, numel, first, last, out);
                    });
}

// Packets and the tensors that they are added to, validated; a tensor may be there twice.
struct Targets {
  std::vector<PacketView> packets;
  std::vector<int64_t> numel;
  std::vector<float*> data;
  int64_t entries = 0;
  bool shared = false;  // some of the tensors share memory

  // split: where given, the packet of tensor i is the next split[i] entries of the first index and
  // value; where that is -1, the next of the others.
  Targets(const char* op, const std::vector<Tensor>& dense, const std::vector<Tensor>& index,
          const std::vector<Tensor>& value, const std::vector<int64_t>& split = {}) {
    const size_t m = dense.size();
    const size_t arrays =
        split.empty() ? m : 1 + static_cast<size_t>(std::count(split.begin(), split.end(), -1));
    GCEXT_CHECK(index.size() == arrays && value.size() == arrays, op,
                ": needs an index and a value for every tensor, got ", index.size(), " and ",
                value.size(), " for ", m, ".");
    const std::string what = std::string(op) + ": dense";
    std::vector<std::pair<const float*, const float*>> memory;
    packets.reserve(m), numel.reserve(m), data.reserve(m), memory.reserve(m);
    for (size_t i = 0; i < m; ++i) {
      check_dense(dense[i], ScalarType::Float, what.c_str());
      numel.push_back(dense[i].numel());
      if (split.empty()) packets.push_back(view_packet(op, index[i], value[i], numel[i]));
      data.push_back(dense[i].mutable_data_ptr<float>());
      if (numel[i] > 0) memory.emplace_back(data[i], data[i] + numel[i]);
    }
    if (!split.empty()) view_parts(op, index, value, split);
    for (const PacketView& packet : packets) entries += packet.k;
    check_rising(op, packets, numel);
    std::sort(memory.begin(), memory.end(), std::less<>());
    for (size_t i = 1; i < memory.size(); ++i)
      shared = shared || std::less<>()(memory[i].first, memory[i - 1].second);
  }

  void view_parts(const char* op, const std::vector<Tensor>& index,
                  const std::vector<Tensor>& value, const std::vector<int64_t>& split) {
    GCEXT_CHECK(split.size() == numel.size(), op,
                ": split must have a number for every tensor, got ", split.size(), " for ",
                numel.size(), ".");
    const PacketView whole = view_packet(op, index[0], value[0], 0);
    int64_t at = 0;
    size_t other = 0;
    for (size_t i = 0; i < split.size(); ++i) {
      const int64_t k = split[i];
      if (k == -1) {
        ++other;
        packets.push_back(view_packet(op, index[other], value[other], numel[i]));
        continue;
      }
      GCEXT_CHECK(k >= 0 && k <= whole.k - at, op, ": split must add up to the entries, got ", k,
                  " from ", at, " on, of ", whole.k, ".");
      packets.push_back({static_cast<const char*>(whole.index) + at * (whole.wide ? 8 : 4),
                         whole.value + at, k, whole.wide, false});
      at += k;
    }
    GCEXT_CHECK(at == whole.k, op, ": split must add up to the entries, got ", at, " of ", whole.k,
                ".");
  }

  // Calls visit(i, from, until) for the entries [from, until) of packet i, of all packets' entries
  // one after another those in `whole`.
  template <class Visit>
  void walk(Span whole, const Visit& visit) const {
    int64_t first = 0;
    for (size_t i = 0; i < packets.size() && first < whole.until; first += packets[i++].k) {
      const int64_t begin = std::max<int64_t>(0, whole.from - first),
                    end = std::min(packets[i].k, whole.until - first);
      if (begin < end) visit(i, begin, end);
    }
  }

  // The same, all entries cut into a part a thread.
  template <class Visit>
  void walk_all(int64_t most_parts, const Visit& visit) const {
    const int64_t parts = std::min(most_parts, parts_for(entries, kEntriesPerThread));
    const int64_t step = entries / parts + 1;
    parallel_parts(parts, [&](int64_t part) {
      walk({std::min(entries, part * step), std::min(entries, (part + 1) * step)}, visit);
    });
  }
};

// Adds each packet to its tensor; where tensors share memory, one thread adds them all.
void add_all(const Targets& targets, double alpha) {
  const CombineTable& table = GCEXT_TABLE(combine_table);
  targets.walk_all(targets.shared ? 1 : targets.entries + 1, [&](size_t i, int64_t from,
                                                                 int64_t until) {
    table.add_in_place(targets.packets[i], from, until, static_cast<float>(alpha), targets.data[i]);
  });
}

// The first of the tensors that adding its packet would make non-finite somewhere where it is
// finite; -1 if none.
int64_t first_overflow(const Targets& targets, double alpha) {
  // Less than half the distance between the largest float32 and the one before: no sum of it with a
  // finite float32 overflows.
  constexpr double kHarmless = 0x1p102;
  const CombineTable& table = GCEXT_TABLE(combine_table);
  std::atomic<int64_t> first{INT64_MAX};
  targets.walk_all(targets.entries + 1, [&](size_t i, int64_t from, int64_t until) {
    const PacketView& packet = targets.packets[i];
    const uint32_t top = GCEXT_TABLE(select_table).highest(packet.value + from, until - from);
    if (std::fabs(alpha) * static_cast<double>(float_of(top)) < kHarmless) return;
    if (table.stays_finite(packet, from, until, static_cast<float>(alpha), targets.data[i])) return;
    const auto at = static_cast<int64_t>(i);
    int64_t held = first.load();
    while (at < held && !first.compare_exchange_weak(held, at)) {
    }
  });
  return first == INT64_MAX ? -1 : first.load();
}

void combine_add_(Tensor dense, Tensor index, Tensor value, double alpha,
                  const std::optional<Tensor>& info) {
  if (const int64_t* const field = add_info(info); field != nullptr && field[kInfoStatus] != 0)
    return;
  add_all(Targets("combine_add_", {dense}, {index}, {value}), alpha);
}

void combine_add_many_(const std::vector<Tensor>& dense, const std::vector<Tensor>& index,
                       const std::vector<Tensor>& value, double alpha) {
  add_all(Targets("combine_add_many_", dense, index, value), alpha);
}

// The same, but nothing is written where a sum would overflow: which tensor's, or -1.
int64_t combine_add_finite_(const std::vector<Tensor>& dense, const std::vector<Tensor>& index,
                            const std::vector<Tensor>& value, double alpha,
                            const std::vector<int64_t>& split) {
  const Targets targets("combine_add_finite_", dense, index, value, split);
  const int64_t overflow = first_overflow(targets, alpha);
  if (overflow < 0) add_all(targets, alpha);
  return overflow;
}

}  // namespace

GCEXT_OPERATOR(CPU, combine,
               "(Tensor[] index, Tensor[] value, float[] weights, int numel, float[] scale=[], "
               "Tensor[]? norms=None, int[] steps=[], int[] bucket=[], int[] table=[]) -> Tensor")
GCEXT_OPERATOR(CPU, combine_add_,
               "(Tensor(a!) dense, Tensor index, Tensor value, float alpha, Tensor? info=None) -> "
               "()")
GCEXT_OPERATOR(CPU, combine_add_many_,
               "(Tensor(a!)[] dense, Tensor[] index, Tensor[] value, float alpha) -> ()")
GCEXT_OPERATOR(CPU, combine_add_finite_,
               "(Tensor(a!)[] dense, Tensor[] index, Tensor[] value, float alpha, int[] split=[]) "
               "-> int")

}  // namespace gcext
