#include "gram.h"

#include "../common/arguments.h"
#include "gram_count.h"

namespace gcext {
namespace {

// Elements worth a thread's start, and parts a thread: entries may crowd in some of them.
constexpr int64_t kTilesPerThread = 4, kPartsPerThread = 8;

// Pairs i <= j in rows: (0,0) (0,1) .. (0,m-1) (1,1) .. Row i is indexed by j.
int64_t triangle_row(int64_t i, int64_t m) { return i * m - i * (i - 1) / 2 - i; }

// Steps 6 and 7: what one chunk adds up of the pairs that are not both ternary.
class PairSums {
 public:
  // `ternary` says which packets are. `sum` is the upper triangle, all +0.
  PairSums(const std::vector<PacketView>& packets, const std::vector<char>& ternary, int64_t numel,
           double* sum)
      : packets_(packets),
        ternary_(ternary),
        m_(static_cast<int64_t>(packets.size())),
        numel_(numel),
        sum_(sum),
        tile_(kGramTile) {
    bool all = true;  // of the packets from i on, none of them dense, are ternary
    several_.resize(packets.size());
    for (int64_t i = m_ - 1; i >= 0; --i) {
      (packets[i].dense ? dense_ : sparse_).push_back(i);
      all &= packets[i].dense || ternary[i];
      several_[i] = !packets[i].dense && !all;
    }
    std::reverse(dense_.begin(), dense_.end());
    std::reverse(sparse_.begin(), sparse_.end());
  }

  static int64_t tiles(int64_t numel) { return numel / kGramTile + (numel % kGramTile != 0); }

  // Adds tiles [first, last).
  void run(int64_t first, int64_t last, std::atomic<bool>* rising) {
    Walk walk(packets_, first * kGramTile, last == tiles(numel_) ? numel_ : last * kGramTile,
              numel_, rising);
    for (int64_t tile = first; tile < last;) {
      begin_ = tile * kGramTile;
      size_ = std::min(kGramTile, numel_ - begin_);
      for (int64_t i : sparse_) walk.enter(i, begin_ + size_);
      for (int64_t i : sparse_)
        if (walk[i].size() > 0) sparse_row(walk, i);
      dense_blocks();
      const int64_t next = walk.next() / kGramTile;
      tile = dense_.empty() ? std::max(tile + 1, next) : tile + 1;
    }
  }

 private:
  double& sum(int64_t i, int64_t j) {
    return sum_[triangle_row(std::min(i, j), m_) + std::max(i, j)];
  }

  void sparse_row(const Walk& walk, int64_t i) {
    for (int64_t j : dense_)
      sum(i, j) += table_.dot_entries(packets_[i], walk[i], begin_, packets_[j].value + begin_);
    if (!several_[i]) return;
    table_.spread(packets_[i], walk[i], begin_, false, tile_.data());
    for (int64_t j : sparse_)
      if (j >= i && !(ternary_[i] && ternary_[j]) && walk[j].size() > 0)
        sum(i, j) += table_.dot_entries(packets_[j], walk[j], begin_, tile_.data());
    table_.spread(packets_[i], walk[i], begin_, true, tile_.data());
  }

  void dense_blocks() {
    const int64_t count = static_cast<int64_t>(dense_.size());
    for (int64_t row = 0; row < count; row += kRows)
      for (int64_t column = row; column < count; column += kColumns) {
        const float *rows[kRows], *columns[kColumns];
        for (int64_t r = 0; r < kRows; ++r) rows[r] = dense_tile(row + r);
        for (int64_t c = 0; c < kColumns; ++c) columns[c] = dense_tile(column + c);
        double dot[kRows * kColumns];
        table_.dot_dense(rows, columns, size_, dot);
        for (int64_t r = 0; r < kRows; ++r)
          for (int64_t c = 0; c < kColumns; ++c)
            if (row + r < count && column + c < count && column + c >= row + r)
              sum(dense_[row + r], dense_[column + c]) += dot[kColumns * r + c];
      }
  }

  // Behind the last one comes the last one: blocks are whole.
  const float* dense_tile(int64_t place) const {
    return packets_[dense_[std::min(place, static_cast<int64_t>(dense_.size()) - 1)]].value +
           begin_;
  }

  const GramTable& table_ = GCEXT_TABLE(gram_table);
  const std::vector<PacketView>& packets_;
  const std::vector<char>& ternary_;
  const int64_t m_, numel_;
  double* sum_;
  std::vector<float> tile_;
  std::vector<int64_t> dense_, sparse_;
  std::vector<char> several_;  // some sparse packet from here on needs this one spread
  int64_t begin_ = 0, size_ = 0;
};

std::vector<char> which_are_ternary(const std::vector<PacketView>& packets,
                                    const std::vector<double>& scale) {
  GCEXT_CHECK(scale.size() == packets.size(), "gram: needs a scale for every packet, got ",
              scale.size(), " for ", packets.size(), ".");
  std::vector<char> ternary;
  for (size_t i = 0; i < packets.size(); ++i) {
    check_gram_scale(scale[i], packets[i].dense);
    ternary.push_back(scale[i] > 0 || (packets[i].k == 0 && !packets[i].dense));  // empty: zeros
  }
  return ternary;
}

// The counts of all pairs of packets, as rows of PairCounts.
std::vector<int64_t> count_pairs(const std::vector<PacketView>& packets, int64_t numel) {
  std::atomic<bool> rising{true};
  const int64_t tiles = PairCounts::tiles(numel);
  const int64_t threads = parts_for(tiles, kTilesPerThread);
  const int64_t parts = threads == 1 ? 1 : std::min(tiles, threads * kPartsPerThread);
  std::vector<std::vector<int64_t>> counts(static_cast<size_t>(threads));
  std::atomic<int64_t> taken{0};
  parallel_parts(threads, [&](int64_t thread) {
    PairCounts pairs(packets, numel);
    for (int64_t part; (part = taken++) < parts;)
      pairs.run(tiles * part / parts, tiles * (part + 1) / parts, &rising);
    counts[thread] = pairs.release();
  });
  if (!rising) check_rising("gram", packets, numel);
  for (int64_t thread = 1; thread < threads; ++thread)
    for (size_t i = 0; i < counts[0].size(); ++i) counts[0][i] += counts[thread][i];
  return std::move(counts[0]);
}

// The sums of all pairs that are not both ternary, as rows of PairSums.
std::vector<double> sum_pairs(const std::vector<PacketView>& packets,
                              const std::vector<char>& ternary, int64_t numel) {
  std::atomic<bool> rising{true};
  const int64_t m = static_cast<int64_t>(packets.size()), tiles = PairSums::tiles(numel);
  const int64_t step = tiles / kGramChunks + (tiles % kGramChunks != 0);
  const int64_t chunks = tiles == 0 ? 0 : (tiles - 1) / step + 1;
  std::vector<double> sum(static_cast<size_t>(m * (m + 1) / 2));
  std::vector<std::vector<double>> chunk(static_cast<size_t>(chunks));
  parallel_parts(chunks, [&](int64_t i) {
    chunk[i].resize(sum.size());
    PairSums(packets, ternary, numel, chunk[i].data())
        .run(i * step, std::min(tiles, (i + 1) * step), &rising);
  });
  if (!rising) check_rising("gram", packets, numel);
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

GCEXT_OPERATOR(CPU, gram, "(Tensor[] index, Tensor[] value, float[] scale, int numel) -> Tensor")

}  // namespace gcext
