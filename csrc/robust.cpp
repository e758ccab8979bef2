#include "robust.h"

#include <cstring>

#include "common/arguments.h"
#include "common/packet.h"
#include "common/pool.h"

namespace gcext {
namespace {

constexpr int64_t kTilesPerThread = 16;  // 8,192 elements are worth a thread

// Tiles [first, last) of the result; the steps are those of robust.h.
void trim_tiles(const std::vector<PacketView>& packets, const std::vector<ValueCode>& codes,
                int64_t drop, int64_t numel, int64_t first, int64_t last, float* out) {
  const RobustTable& kernels = GCEXT_TABLE(robust_table);
  const int64_t m = static_cast<int64_t>(packets.size());
  std::vector<int64_t> cursor(packets.size());
  int32_t dense = 0;  // their entries fill the first rows
  for (int64_t i = 0; i < m; ++i) {
    if (packets[i].dense)
      ++dense;
    else
      cursor[i] = first_entry(packets[i], first * kRobustTile);
  }
  RobustTile tile;
  std::vector<float> table;
  std::vector<double> total(kRobustTile);
  std::vector<float> mean(kRobustTile);
  for (int64_t t = first; t < last; ++t) {
    const int64_t begin = t * kRobustTile, end = std::min(numel, begin + kRobustTile);
    std::vector<int64_t> next = cursor;
    std::fill(tile.count, tile.count + kRobustTile, dense);
    for (int64_t i = 0; i < m; ++i)
      if (!packets[i].dense) next[i] = kernels.count(packets[i], cursor[i], begin, end, &tile);

    int64_t columns = 0, rows = 0;
    for (int64_t e = 0; e < end - begin; ++e) {
      const bool chosen = tile.count[e] > drop;
      tile.slot[e] = chosen ? static_cast<int32_t>(columns) : -1;
      tile.column[columns] = static_cast<int32_t>(e);
      columns += chosen;
      rows = std::max<int64_t>(rows, tile.count[e]);
    }
    std::memset(out + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
    if (columns > 0) {
      table.assign(static_cast<size_t>(rows * kRobustTile), 0.0f);
      std::fill(tile.filled, tile.filled + columns, dense);
      float* row = table.data();
      for (int64_t i = 0; i < m; ++i) {
        const Span tile_span = packets[i].dense ? Span{begin, end} : Span{cursor[i], next[i]};
        with_values(packets[i], codes[i], tile_span, [&](const PacketView& packet, Span span) {
          if (packet.dense) {
            kernels.place_dense(packet.value + begin, columns, tile, row);
            row += kRobustTile;
          } else {
            kernels.place(packet, span.from, begin, end, &tile, table.data());
          }
        });
      }
      kernels.sort(rows, columns, table.data());
      kernels.sum(table.data(), rows, columns, m, drop, total.data(), mean.data());
      for (int64_t s = 0; s < columns; ++s) out[begin + tile.column[s]] = mean[s];
    }
    cursor.swap(next);
  }
}

Tensor trimmed_mean(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
                    int64_t drop, int64_t numel, const std::vector<double>& scale,
                    const std::optional<std::vector<Tensor>>& norms,
                    const std::vector<int64_t>& steps, const std::vector<int64_t>& bucket,
                    const std::vector<int64_t>& table) {
  const CodeLists lists{scale, norms, steps, bucket, table};
  const std::vector<PacketView> packets = view_packets("trimmed_mean", index, value, numel, &lists);
  const std::vector<ValueCode> codes = view_codes("trimmed_mean", packets, value, lists, numel);
  check_drop(drop, packets.size());
  return fill_tiles(numel, kRobustTile, kTilesPerThread,
                    [&](int64_t first, int64_t last, float* out) {
                      trim_tiles(packets, codes, drop, numel, first, last, out);
                    });
}

}  // namespace

GCEXT_OPERATOR(CPU, trimmed_mean,
               "(Tensor[] index, Tensor[] value, int drop, int numel, float[] scale=[], "
               "Tensor[]? norms=None, int[] steps=[], int[] bucket=[], int[] table=[]) -> Tensor")

}  // namespace gcext
