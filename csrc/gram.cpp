#include "gram.h"

#include <cmath>

#include "gram_count.h"
#include "gram_sum.h"

namespace gcext {
namespace {

// Elements worth a thread's start, and parts a thread: entries may crowd in some of them.
constexpr int64_t kTilesPerThread = 4, kPartsPerThread = 8;

std::vector<char> which_are_ternary(const std::vector<PacketView>& packets,
                                    const std::vector<double>& scale) {
  GCEXT_CHECK(scale.size() == packets.size(), "gram: needs a scale for every packet, got ",
              scale.size(), " for ", packets.size(), ".");
  std::vector<char> ternary;
  for (size_t i = 0; i < packets.size(); ++i) {
    GCEXT_CHECK(std::isfinite(scale[i]) && scale[i] >= 0,
                "gram: a scale must be finite and not negative, got ", scale[i],
                ". Pass 0 for a packet that is not ternary.");
    GCEXT_CHECK(scale[i] == 0 || !packets[i].dense, "gram: a dense packet has no scale, got ",
                scale[i], ". Pass 0.");
    ternary.push_back(scale[i] > 0 || (packets[i].k == 0 && !packets[i].dense));  // empty: zeros
  }
  return ternary;
}

// The counts of all pairs of packets, as rows of PairCounts.
std::vector<int64_t> count_pairs(const std::vector<PacketView>& packets, int64_t numel) {
  Walk::Verdict verdict;
  const int64_t tiles = PairCounts::tiles(numel);
  const int64_t threads = parts_for(tiles, kTilesPerThread);
  const int64_t parts = threads == 1 ? 1 : std::min(tiles, threads * kPartsPerThread);
  std::vector<std::vector<int64_t>> counts(static_cast<size_t>(threads));
  std::atomic<int64_t> taken{0};
  parallel_parts(threads, [&](int64_t thread) {
    PairCounts pairs(packets, numel);
    for (int64_t part; (part = taken++) < parts;) {
      const int64_t step = tiles / parts, more = tiles % parts;
      const int64_t first = part * step + std::min(part, more);
      pairs.run(first, first + step + (part < more), &verdict);
    }
    counts[thread] = pairs.release();
  });
  verdict.check("gram", packets, numel);
  for (int64_t thread = 1; thread < threads; ++thread)
    for (size_t i = 0; i < counts[0].size(); ++i) counts[0][i] += counts[thread][i];
  return std::move(counts[0]);
}

// The sums of all pairs that are not both ternary, as rows of PairSums.
std::vector<double> sum_pairs(const std::vector<PacketView>& packets,
                              const std::vector<char>& ternary, int64_t numel) {
  Walk::Verdict verdict;
  const int64_t m = static_cast<int64_t>(packets.size()), tiles = PairSums::tiles(numel);
  const int64_t step = tiles / kGramChunks + (tiles % kGramChunks != 0);
  const int64_t chunks = tiles == 0 ? 0 : (tiles - 1) / step + 1;
  std::vector<double> sum(static_cast<size_t>(m * (m + 1) / 2));
  std::vector<std::vector<double>> chunk(static_cast<size_t>(chunks));
  parallel_parts(chunks, [&](int64_t i) {
    chunk[i].resize(sum.size());
    PairSums(packets, ternary, numel, chunk[i].data())
        .run(i * step, std::min(tiles, (i + 1) * step), &verdict);
  });
  verdict.check("gram", packets, numel);
  const KernelFpEnv env;
  for (const std::vector<double>& each : chunk)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += each[i];
  return sum;
}

Tensor gram(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
            const std::vector<double>& scale, int64_t numel) {
  const std::vector<PacketView> packets = view_packets_unchecked("gram", index, value, numel);
  const std::vector<char> ternary = which_are_ternary(packets, scale);
  const int64_t m = static_cast<int64_t>(packets.size());
  Tensor out = torch::stable::empty({m, m}, ScalarType::Double);
  double* dot = out.mutable_data_ptr<double>();
  const auto set = [&](int64_t i, int64_t j, double x) { dot[i * m + j] = dot[j * m + i] = x; };

  std::vector<PacketView> counted;
  std::vector<int64_t> place;
  for (int64_t i = 0; i < m; ++i) {
    if (!ternary[i]) continue;
    counted.push_back(packets[i]);
    place.push_back(i);
  }
  const std::vector<int64_t> count = count_pairs(counted, numel);
  const KernelFpEnv env;
  for (size_t a = 0; a < place.size(); ++a) {
    const int64_t i = place[a];
    set(i, i, scale[i] * scale[i] * static_cast<double>(packets[i].k));
    for (size_t b = 0; b < a; ++b) {
      const int64_t j = place[b];
      set(i, j, (scale[i] * scale[j]) * static_cast<double>(count[pair_row(a) + b]));
    }
  }
  if (counted.size() == packets.size()) return out;

  const std::vector<double> sum = sum_pairs(packets, ternary, numel);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = i; j < m; ++j)
      if (!(ternary[i] && ternary[j])) set(i, j, sum[triangle_row(i, m) + j]);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) {
  m.def("gram(Tensor[] index, Tensor[] value, float[] scale, int numel) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gcext, CPU, m) { m.impl("gram", TORCH_BOX(&gram)); }

}  // namespace gcext
