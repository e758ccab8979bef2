#include "gram.h"

#include "../common/arguments.h"
#include "gram_count.h"

namespace gcext {
namespace {

// Elements worth a thread's start, and parts a thread: entries may crowd in some of them.
constexpr int64_t kTilesPerThread = 4, kPartsPerThread = 8;

// Pairs i <= j in rows: (0,0) (0,1) .. (0,m-1) (1,1) .. Row i is indexed by j.
int64_t triangle_row(int64_t i, int64_t m) { return i * m - i * (i - 1) / 2 - i; }

// Packets of one kind, ternary (sparse) or signs (dense), are counted, other pairs summed.
enum Kind : char { kSummed, kTernary, kSigns };

// Steps 6 and 7: what one chunk adds up of the pairs that are not counted.
class PairSums {
 public:
  // `sum` is the upper triangle, all +0.
  PairSums(const std::vector<PacketView>& packets, const std::vector<ValueCode>& codes,
           const std::vector<Kind>& kind, int64_t numel, double* sum)
      : packets_(packets),
        codes_(codes),
        kind_(kind),
        m_(static_cast<int64_t>(packets.size())),
        numel_(numel),
        sum_(sum),
        tile_(kGramTile) {
    bool all = true;  // of the packets from i on, none of them dense, are ternary
    several_.resize(packets.size());
    decoded_.resize(packets.size());
    for (int64_t i = m_ - 1; i >= 0; --i) {
      (packets[i].dense ? dense_ : sparse_).push_back(i);
      all &= packets[i].dense || kind[i];
      several_[i] = !packets[i].dense && !all;
    }
    std::reverse(sparse_.begin(), sparse_.end());
    // Those of signs last: blocks of them alone are left out.
    std::stable_partition(dense_.begin(), dense_.end(), [&](int64_t i) { return !kind_[i]; });
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
      for (int64_t i = 0; i < m_; ++i)
        if (codes_[i].coded()) decode_tile(i, packets_[i].dense ? whole_tile() : walk[i]);
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

  bool counted(int64_t i, int64_t j) const { return kind_[i] && kind_[i] == kind_[j]; }

  Span whole_tile() const { return {begin_, begin_ + size_}; }

  void decode_tile(int64_t i, Span span) {
    decoded_[i].resize(kGramTile + 8);
    packets_[i].value = decode(packets_[i], codes_[i], span, decoded_[i].data());
  }

  void sparse_row(const Walk& walk, int64_t i) {
    for (int64_t j : dense_)
      sum(i, j) += table_.dot_entries(packets_[i], walk[i], begin_, packets_[j].value + begin_);
    if (!several_[i]) return;
    table_.spread(packets_[i], walk[i], begin_, false, tile_.data());
    for (int64_t j : sparse_)
      if (j >= i && !counted(i, j) && walk[j].size() > 0)
        sum(i, j) += table_.dot_entries(packets_[j], walk[j], begin_, tile_.data());
    table_.spread(packets_[i], walk[i], begin_, true, tile_.data());
  }

  void dense_blocks() {
    const int64_t count = static_cast<int64_t>(dense_.size());
    for (int64_t row = 0; row < count && !kind_[dense_[row]]; row += kRows)
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
  std::vector<PacketView> packets_;  // coded ones have their tile's values
  const std::vector<ValueCode>& codes_;
  const std::vector<Kind>& kind_;
  const int64_t m_, numel_;
  double* sum_;
  std::vector<float> tile_;
  std::vector<std::vector<float>> decoded_;
  std::vector<int64_t> dense_, sparse_;
  std::vector<char> several_;  // some sparse packet from here on needs this one spread
  int64_t begin_ = 0, size_ = 0;
};

std::vector<Kind> kinds_of(const std::vector<PacketView>& packets,
                           const std::vector<ValueCode>& codes, const std::vector<double>& scale) {
  GCEXT_CHECK(scale.size() == packets.size(), "gram: needs a scale for every packet, got ",
              scale.size(), " for ", packets.size(), ".");
  std::vector<Kind> kind;
  for (size_t i = 0; i < packets.size(); ++i) {
    const bool signs = packets[i].dense && codes[i].bits != nullptr, empty = packets[i].k == 0;
    check_gram_scale(scale[i], packets[i].dense && !signs && codes[i].power == nullptr);
    const bool ternary = !packets[i].dense && (empty || (scale[i] > 0 && !codes[i].coded()));
    kind.push_back(signs ? kSigns : ternary ? kTernary : kSummed);
  }
  return kind;
}

// The counts of all pairs of packets, as rows of PairCounts.
std::vector<int64_t> count_pairs(const std::vector<PacketView>& packets,
                                 const std::vector<ValueCode>& codes, int64_t numel) {
  if (packets.empty()) return {};
  std::atomic<bool> rising{true};
  const int64_t tiles = PairCounts::tiles(numel);
  const int64_t threads = parts_for(tiles, kTilesPerThread);
  const int64_t parts = threads == 1 ? 1 : std::min(tiles, threads * kPartsPerThread);
  std::vector<std::vector<int64_t>> counts(static_cast<size_t>(threads));
  std::atomic<int64_t> taken{0};
  parallel_parts(threads, [&](int64_t thread) {
    PairCounts pairs(packets, codes, numel);
    for (int64_t part; (part = taken++) < parts;)
      pairs.run(tiles * part / parts, tiles * (part + 1) / parts, &rising);
    counts[thread] = pairs.release();
  });
  if (!rising) check_rising("gram", packets, numel);
  for (int64_t thread = 1; thread < threads; ++thread)
    for (size_t i = 0; i < counts[0].size(); ++i) counts[0][i] += counts[thread][i];
  return std::move(counts[0]);
}

// The sums of all pairs that are not counted, as rows of PairSums.
std::vector<double> sum_pairs(const std::vector<PacketView>& packets,
                              const std::vector<ValueCode>& codes, const std::vector<Kind>& kind,
                              int64_t numel) {
  std::atomic<bool> rising{true};
  const int64_t m = static_cast<int64_t>(packets.size()), tiles = PairSums::tiles(numel);
  const int64_t step = tiles / kGramChunks + (tiles % kGramChunks != 0);
  const int64_t chunks = tiles == 0 ? 0 : (tiles - 1) / step + 1;
  std::vector<double> sum(static_cast<size_t>(m * (m + 1) / 2));
  std::vector<std::vector<double>> chunk(static_cast<size_t>(chunks));
  parallel_parts(chunks, [&](int64_t i) {
    chunk[i].resize(sum.size());
    PairSums(packets, codes, kind, numel, chunk[i].data())
        .run(i * step, std::min(tiles, (i + 1) * step), &rising);
  });
  if (!rising) check_rising("gram", packets, numel);
  const KernelFpEnv env;
  for (const std::vector<double>& each : chunk)
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += each[i];
  return sum;
}

Tensor gram(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
            const std::vector<double>& scale, int64_t numel,
            const std::optional<std::vector<Tensor>>& norms, const std::vector<int64_t>& steps,
            const std::vector<int64_t>& bucket, const std::vector<int64_t>& table) {
  const CodeLists lists{scale, norms, steps, bucket, table};
  const std::vector<PacketView> packets =
      view_packets_unchecked("gram", index, value, numel, &lists);
  const std::vector<ValueCode> codes = view_codes("gram", packets, value, lists, numel);
  const std::vector<Kind> kind = kinds_of(packets, codes, scale);
  const int64_t m = static_cast<int64_t>(packets.size());
  Tensor out = empty({m, m}, ScalarType::Double);
  double* dot = out.mutable_data_ptr<double>();
  const auto set = [&](int64_t i, int64_t j, double x) { dot[i * m + j] = dot[j * m + i] = x; };

  const KernelFpEnv env;
  for (const Kind which : {kTernary, kSigns}) {
    std::vector<PacketView> counted;
    std::vector<ValueCode> counted_codes;
    std::vector<int64_t> place;
    for (int64_t i = 0; i < m; ++i) {
      if (kind[i] != which) continue;
      counted.push_back(packets[i]);
      counted_codes.push_back(codes[i]);
      place.push_back(i);
    }
    const std::vector<int64_t> count = count_pairs(counted, counted_codes, numel);
    for (size_t a = 0; a < place.size(); ++a) {
      const int64_t i = place[a];
      set(i, i, scale[i] * scale[i] * static_cast<double>(packets[i].k));
      for (size_t b = 0; b < a; ++b) {
        const int64_t j = place[b];  // + 0.0: a scale may be 0, and its products are not -0
        set(i, j, (scale[i] * scale[j]) * static_cast<double>(count[pair_row(a) + b]) + 0.0);
      }
    }
    if (counted.size() == packets.size()) return out;
  }

  const std::vector<double> sum = sum_pairs(packets, codes, kind, numel);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = i; j < m; ++j)
      if (!(kind[i] && kind[i] == kind[j])) set(i, j, sum[triangle_row(i, m) + j]);
  return out;
}

}  // namespace

GCEXT_OPERATOR(CPU, gram,
               "(Tensor[] index, Tensor[] value, float[] scale, int numel, Tensor[]? norms=None, "
               "int[] steps=[], int[] bucket=[], int[] table=[]) -> Tensor")

}  // namespace gcext
