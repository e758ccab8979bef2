#include "combine.h"

#include <cstring>

#include "common/packet.h"

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
  std::vector<double> sum(lone ? 0 : kCombineTile);
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * kCombineTile, end = std::min(numel, begin + kCombineTile),
                  n = end - begin;
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
               const std::vector<int64_t>& bucket) {
  const std::vector<PacketView> packets = view_packets("combine", index, value, numel, true);
  const std::vector<ValueCode> codes =
      view_codes("combine", packets, value, {scale, norms, steps, bucket}, numel);
  GCEXT_CHECK(weights.size() == packets.size(), "combine: needs a weight for every packet, got ",
              weights.size(), " for ", packets.size(), ".");
  return fill_tiles(numel, kCombineTile, kTilesPerThread,
                    [&](int64_t first, int64_t last, float* out) {
                      combine_tiles(packets, codes, weights, numel, first, last, out);
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
               "(Tensor[] index, Tensor[] value, float[] weights, int numel, float[] scale=[], "
               "Tensor[]? norms=None, int[] steps=[], int[] bucket=[]) -> Tensor")
GCEXT_OPERATOR(CPU, combine_add_,
               "(Tensor(a!) dense, Tensor index, Tensor value, float alpha) -> ()")

}  // namespace gcext
