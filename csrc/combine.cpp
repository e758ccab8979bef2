#include "combine.h"

#include <cstring>

#include "common/packet.h"

namespace gcext {
namespace {

constexpr int64_t kTilesPerThread = 2;  // 32,768 elements are worth a thread
constexpr int64_t kEntriesPerThread = 1 << 15;

// Tiles [first, last) of the sum.
void combine_tiles(const std::vector<PacketView>& packets, const std::vector<double>& weights,
                   int64_t numel, int64_t first, int64_t last, float* out) {
  const CombineTable& table = GCEXT_TABLE(combine_table);
  std::vector<int64_t> cursor(packets.size());
  for (size_t i = 0; i < packets.size(); ++i)
    if (!packets[i].dense) cursor[i] = first_entry(packets[i], first * kCombineTile);
  const bool lone = packets.size() == 1 && !packets[0].dense;
  std::vector<double> sum(lone ? 0 : kCombineTile);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * kCombineTile, end = std::min(numel, begin + kCombineTile),
                  n = end - begin;
    if (lone) {
      std::memset(out + begin, 0, static_cast<size_t>(n) * sizeof(float));
      cursor[0] = table.place(packets[0], cursor[0], begin, end, weights[0], out + begin);
      continue;
    }
    bool touched = false;  // the scratch is all zeros as long as nothing touched it
    for (size_t i = 0; i < packets.size(); ++i) {
      if (packets[i].dense) {
        table.add_dense(packets[i].value + begin, n, weights[i], sum.data());
        touched = true;
      } else {
        const int64_t from = cursor[i];
        cursor[i] = table.add(packets[i], from, begin, end, weights[i], sum.data());
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
               const std::vector<double>& weights, int64_t numel) {
  const std::vector<PacketView> packets = view_packets("combine", index, value, numel);
  GCEXT_CHECK(weights.size() == packets.size(), "combine: needs a weight for every packet, got ",
              weights.size(), " for ", packets.size(), ".");
  return fill_tiles(numel, kCombineTile, kTilesPerThread,
                    [&](int64_t first, int64_t last, float* out) {
                      combine_tiles(packets, weights, numel, first, last, out);
                    });
}

void combine_add_(Tensor dense, Tensor index, Tensor value, double alpha) {
  check_dense(dense, ScalarType::Float, "combine_add_: dense");
  const PacketView packet = view_packets("combine_add_", {index}, {value}, dense.numel())[0];
  float* data = dense.mutable_data_ptr<float>();
  const int64_t parts = parts_for(packet.k, kEntriesPerThread);
  parallel_parts(parts, [&](int64_t part) {
    const int64_t step = packet.k / parts + 1, from = std::min(packet.k, part * step);
    GCEXT_TABLE(combine_table)
        .add_in_place(packet, from, std::min(packet.k, from + step), static_cast<float>(alpha),
                      data);
  });
}

}  // namespace

GCEXT_OPERATOR(CPU, combine,
               "(Tensor[] index, Tensor[] value, float[] weights, int numel) -> Tensor")
GCEXT_OPERATOR(CPU, combine_add_,
               "(Tensor(a!) dense, Tensor index, Tensor value, float alpha) -> ()")

}  // namespace gcext
