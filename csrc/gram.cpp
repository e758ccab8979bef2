#include "gram.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "packet.h"

namespace gcext {
namespace {

// The upper triangle in rows: (0,0) (0,1) .. (0,m-1) (1,1) .. A row i is indexed by j >= i.
int64_t row_start(int64_t i, int64_t m) { return i * m - i * (i - 1) / 2 - i; }

struct Source {
  PacketView packet;
  double scale;
  bool ternary;  // an empty packet too: all its counts are zero
  bool spread;   // its row has a pair that needs it as a dense tile
};

// What one chunk adds up, over the upper triangle: counts of ternary pairs, sums of the others.
struct Partial {
  std::vector<int64_t> count;
  std::vector<double> sum;
};

// Where one packet's entries of the current tile are.
struct Span {
  int64_t from, until;
  int64_t size() const { return until - from; }
};

class Chunk {
 public:
  Chunk(const std::vector<Source>& sources, int64_t numel, Partial* partial)
      : table_(GCEXT_TABLE(gram_table)),
        sources_(sources),
        m_(static_cast<int64_t>(sources.size())),
        numel_(numel),
        partial_(partial),
        span_(sources.size()),
        planes_(partial->count.empty() ? 0 : sources.size()),
        tile_(partial->sum.empty() ? 0 : kGramTile) {}

  void run(int64_t first, int64_t last) {
    bool dense = false;
    for (int64_t i = 0; i < m_; ++i) {
      const PacketView& packet = sources_[i].packet;
      dense |= packet.dense;
      if (!packet.dense) span_[i].until = first_entry(packet, first * kGramTile);
    }
    for (int64_t tile = first; tile < last;) {
      begin_ = tile * kGramTile;
      end_ = begin_ + std::min(kGramTile, numel_ - begin_);
      int64_t next = dense ? tile + 1 : last;  // huge tensors may have tiles without an entry
      for (int64_t i = 0; i < m_; ++i) next = std::min(next, enter(i));
      for (int64_t i = 0; i < m_; ++i) row(i);
      tile = next;
    }
  }

 private:
  // Finds the entries of the tile and returns the tile of the first entry after them.
  int64_t enter(int64_t i) {
    const auto& [packet, scale, ternary, spread] = sources_[i];
    if (packet.dense) return std::numeric_limits<int64_t>::max();
    Span& span = span_[i];
    span.from = span.until;
    if (ternary) {
      std::memset(&planes_[i], 0, sizeof(Planes));
      span.until = table_.mark(packet, span.from, begin_, &planes_[i]);
    } else {
      span.until = first_entry(packet, end_);
    }
    if (span.until == packet.k) return std::numeric_limits<int64_t>::max();
    const int64_t index = packet.wide ? packet.index64()[span.until] : packet.index32()[span.until];
    return index / kGramTile;
  }

  void row(int64_t i) {
    const auto& [packet, scale, ternary, spread] = sources_[i];
    const float* x = packet.dense ? packet.value + begin_ : tile_.data();
    const bool spread_now = spread && span_[i].size() > 0;
    if (spread_now)
      table_.spread(packet, span_[i].from, span_[i].until, begin_, false, tile_.data());
    const int64_t start = row_start(i, m_);
    for (int64_t j = i; j < m_; ++j) {
      if (ternary && sources_[j].ternary) {
        if (j > i) partial_->count[start + j] += count(i, j);  // the diagonal is k
      } else if (packet.dense || spread_now) {
        partial_->sum[start + j] += dot(x, i, j);
      }
    }
    if (spread_now)
      table_.spread(packet, span_[i].from, span_[i].until, begin_, true, tile_.data());
  }

  int64_t count(int64_t i, int64_t j) const {
    const int64_t less = span_[i].size() <= span_[j].size() ? i : j, more = i + j - less;
    const Span few = span_[less];
    if (few.size() >= table_.few) return table_.agree(planes_[i], planes_[j]);
    if (few.size() == 0) return 0;
    return table_.look_up(sources_[less].packet, few.from, few.until, begin_, planes_[more]);
  }

  // x: the tile of row i, dense.
  double dot(const float* x, int64_t i, int64_t j) const {
    const PacketView& other = sources_[j].packet;
    if (!other.dense) return table_.dot_entries(other, span_[j].from, span_[j].until, begin_, x);
    const float* y = other.value + begin_;
    if (sources_[i].packet.dense) return table_.dot_dense(x, y, end_ - begin_);
    return table_.dot_entries(sources_[i].packet, span_[i].from, span_[i].until, begin_, y);
  }

  const GramTable& table_;
  const std::vector<Source>& sources_;
  const int64_t m_, numel_;
  Partial* partial_;
  std::vector<Span> span_;
  std::vector<Planes> planes_;
  std::vector<float> tile_;
  int64_t begin_ = 0, end_ = 0;
};

std::vector<Source> classify(const std::vector<PacketView>& packets,
                             const std::vector<double>& scale) {
  std::vector<Source> sources;
  for (size_t i = 0; i < packets.size(); ++i) {
    const PacketView& packet = packets[i];
    GCEXT_CHECK(std::isfinite(scale[i]) && scale[i] >= 0,
                "gram: a scale must be finite and not negative, got ", scale[i],
                ". Pass 0 for a packet that is not ternary.");
    GCEXT_CHECK(scale[i] == 0 || !packet.dense, "gram: a dense packet has no scale, got ", scale[i],
                ". Pass 0.");
    const bool ternary = scale[i] > 0 || (packet.k == 0 && !packet.dense);
    sources.push_back({packet, scale[i], ternary, false});
  }
  // Dense packets are dense already; a ternary one is spread for what is neither.
  for (size_t i = 0; i < sources.size(); ++i)
    for (size_t j = i; j < sources.size() && !sources[i].packet.dense; ++j)
      sources[i].spread |= !(sources[i].ternary && sources[j].ternary);
  return sources;
}

Tensor gram(const std::vector<Tensor>& index, const std::vector<Tensor>& value,
            const std::vector<double>& scale, int64_t numel) {
  const std::vector<PacketView> packets = view_packets("gram", index, value, numel);
  GCEXT_CHECK(scale.size() == packets.size(), "gram: needs a scale for every packet, got ",
              scale.size(), " for ", packets.size(), ".");
  const std::vector<Source> sources = classify(packets, scale);
  const int64_t m = static_cast<int64_t>(sources.size());
  const int64_t tiles = numel / kGramTile + (numel % kGramTile != 0);
  const int64_t step = tiles / kGramChunks + (tiles % kGramChunks != 0);
  const int64_t chunks = tiles == 0 ? 0 : (tiles - 1) / step + 1;

  const auto is_ternary = [](const Source& source) { return source.ternary; };
  const size_t triangle = static_cast<size_t>(m * (m + 1) / 2);
  const bool any = std::any_of(sources.begin(), sources.end(), is_ternary);
  const bool all = std::all_of(sources.begin(), sources.end(), is_ternary);
  std::vector<Partial> partial(static_cast<size_t>(chunks));
  parallel_parts(chunks, [&](int64_t i) {
    if (any) partial[i].count.resize(triangle);
    if (!all) partial[i].sum.resize(triangle);
    Chunk(sources, numel, &partial[i]).run(i * step, std::min(tiles, (i + 1) * step));
  });

  const KernelFpEnv env;
  Tensor out = torch::stable::empty({m, m}, ScalarType::Double);
  double* dot = out.mutable_data_ptr<double>();
  for (int64_t i = 0; i < m; ++i) {
    const int64_t start = row_start(i, m);
    for (int64_t j = i; j < m; ++j) {
      double entry = 0;
      if (sources[i].ternary && sources[j].ternary) {
        int64_t count = i == j ? sources[i].packet.k : 0;
        for (const Partial& p : partial) count += p.count[start + j];
        entry = (sources[i].scale * sources[j].scale) * static_cast<double>(count);
      } else {
        for (const Partial& p : partial) entry += p.sum[start + j];
      }
      dot[i * m + j] = dot[j * m + i] = entry;
    }
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) {
  m.def("gram(Tensor[] index, Tensor[] value, float[] scale, int numel) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gcext, CPU, m) { m.impl("gram", TORCH_BOX(&gram)); }

}  // namespace gcext
