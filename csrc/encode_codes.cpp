#include "encode_codes.h"

#include <cstring>
#include <mutex>
#include <tuple>

#include "bits.h"
#include "common/arguments.h"
#include "common/pool.h"
#include "quantize_pass.h"

namespace gcext {
namespace {

// 1. Only where a bucket has several cells, or out is the memory: pass over the cells, find what is
//    not finite, and tally what the buckets' scales need.
// 2. Such buckets: the scales; fit: pass over the cells again, and fit them.
// 3. Pass over the cells: a bucket of one cell finds its own scale; codes, bits, and out.
//
// Cells and sums are those of quantize.h: no result depends on the number of threads.

// The packed codes of the elements of a part, cell by cell. Bytes that a part shares with its
// neighbours are merged after all parts are done.
class CodeWriter {
 public:
  CodeWriter(const EncodeTable& table, const QuantizeTable& pass, int64_t n, int width,
             int64_t begin, uint8_t* out)
      : table_(table),
        pass_(pass),
        n_(n),
        width_(width),
        group_(begin / 8),
        held_(begin % 8),
        out_(out) {
    shared_ = held_ > 0;
    std::memset(code_, 0, 8);
  }

  // Where the codes of the next cell go: kCell bytes.
  uint8_t* next() { return code_ + held_; }

  // So many were written there.
  void advance(int64_t n) {
    held_ += n;
    int64_t groups = held_ / 8, done = 0;
    if (shared_ && groups > 0) {
      keep(0);
      shared_ = false;
      done = 1;
    }
    const int64_t whole = groups - done;
    uint8_t* const to = out_ + (group_ + done) * width_;
    if (width_ == 8) {
      put(pass_, n_, code_ + 8 * done, 8 * whole, to);
    } else {
      table_.pack(code_ + 8 * done, whole, width_, to);
    }
    group_ += groups;
    held_ %= 8;
    std::memmove(code_, code_ + 8 * groups, static_cast<size_t>(held_));
  }

  // Packs the rest.
  void finish() {
    if (held_ == 0) return;
    std::memset(code_ + held_, 0, static_cast<size_t>(8 - held_));
    keep(shared_ ? 0 : 1);
  }

  // Groups that hold codes of several parts, or fewer than 8. The bits of other codes are zero.
  struct Edge {
    int64_t group = -1;
    uint8_t bytes[8];
  };
  const Edge& edge(int which) const { return edge_[which]; }

 private:
  void keep(int which) {
    edge_[which].group = group_;
    table_.pack(code_, 1, width_, edge_[which].bytes);
  }

  const EncodeTable& table_;
  const QuantizeTable& pass_;
  int64_t n_;  // codes of all parts
  int width_;
  int64_t group_;  // groups of 8 codes before those in code_
  int64_t held_;   // codes that wait for a whole group
  bool shared_;    // the first group has codes of the part before
  uint8_t* out_;
  Edge edge_[2];
  uint8_t code_[kCell + 8];
};

void merge(const std::vector<CodeWriter::Edge>& edges, int width, uint8_t* bits, int64_t bytes) {
  for (const bool clear : {true, false}) {
    for (const CodeWriter::Edge& edge : edges) {
      if (edge.group < 0) continue;
      for (int64_t i = 0, at = edge.group * width; i < width && at < bytes; ++i, ++at)
        bits[at] = clear ? 0 : static_cast<uint8_t>(bits[at] | edge.bytes[i]);
    }
  }
}

struct Encoder {
  HostSource source;
  Cells cells;
  int64_t parts;
  CodeTable kind;
  GridRule rule;
  bool fit;
  float* scales;
  uint8_t* bits;
  const EncodeTable& table = GCEXT_TABLE(encode_table);
  const QuantizeTable& pass = GCEXT_TABLE(quantize_table);

  bool half() const { return kind == CodeTable::kFloat16 || kind == CodeTable::kBfloat16; }
  bool alone() const { return half() || cells.per_bucket == 1; }

  bool run() {
    if (alone()) {
      if (!may_write(pass, source, cells, parts)) return false;
      return half() ? emit_halves() : emit(nullptr);
    }
    const size_t buckets = static_cast<size_t>(cells.buckets());
    std::vector<float> tops(buckets);
    if (kind == CodeTable::kValues) {
      if (!tally_sides()) return false;
    } else {
      if (!find_tops(tops)) return false;
      std::copy(tops.begin(), tops.end(), scales);
      if (fit) fit_scales(tops);
    }
    return emit(tops.data());
  }

  // Step 2, of values.
  bool tally_sides() const {
    const size_t buckets = static_cast<size_t>(cells.buckets());
    std::vector<Sides> sums(buckets);
    std::vector<std::mutex> locks(buckets);
    std::vector<Sides> own(static_cast<size_t>(parts));
    std::vector<int64_t> bucket(static_cast<size_t>(parts), -1);
    const auto flush = [&](size_t part) {
      if (bucket[part] < 0) return;
      const size_t to = static_cast<size_t>(bucket[part]);
      const std::lock_guard<std::mutex> lock(locks[to]);
      for (int side = 0; side < 2; ++side) {
        for (int bin = 0; bin < kBins; ++bin) sums[to].bins[side][bin] += own[part].bins[side][bin];
        sums[to].count[side] += own[part].count[side];
      }
      own[part] = {};
    };
    const bool finite =
        all_finite(pass, source, cells, parts, [&](const Cell& cell, const float* acc) {
          const size_t part = static_cast<size_t>(cell.part);
          if (bucket[part] != cells.bucket_of(cell.index)) {
            flush(part);
            bucket[part] = cells.bucket_of(cell.index);
          }
          table.tally_sides(acc, cell.size, cell.top, cell.ahead, &own[part]);
        });
    if (!finite) return false;
    for (size_t part = 0; part < own.size(); ++part) flush(part);
    parallel_parts(parts, [&](int64_t part) {
      const int64_t all = cells.buckets();
      for (int64_t b = all * part / parts; b < all * (part + 1) / parts; ++b)
        put_means(sums[static_cast<size_t>(b)], b);
    });
    return true;
  }

  void put_means(const Sides& sides, int64_t b) const {
    for (int side = 0; side < 2; ++side)
      scales[2 * b + side] = side_mean(sides.bins[side], sides.count[side], side);
  }

  // Step 2, of the others.
  bool find_tops(std::vector<float>& tops) const {
    std::vector<uint32_t> keys(static_cast<size_t>(cells.count()));
    const bool finite = all_finite(pass, source, cells, parts, [&](const Cell& cell, const float*) {
      keys[static_cast<size_t>(cell.index)] = cell.top;
    });
    for (int64_t cell = 0; finite && cell < cells.count(); ++cell) {
      float& top = tops[static_cast<size_t>(cells.bucket_of(cell))];
      top = std::max(top, float_of(keys[static_cast<size_t>(cell)]));
    }
    return finite;
  }

  void fit_scales(const std::vector<float>& tops) const {
    std::vector<FitSums> fits(static_cast<size_t>(cells.count()));
    for_cells(pass, source, cells, parts, [&](const Cell& cell, const float* acc) {
      const float top = tops[static_cast<size_t>(cells.bucket_of(cell.index))];
      if (!(top > 0)) return;
      uint8_t code[kCell];
      table.grid(acc, cell.size, top, rule, cell.begin, cell.ahead, code,
                 &fits[static_cast<size_t>(cell.index)]);
    });
    for (int64_t b = 0, cell = 0; b < cells.buckets(); ++b) {
      FitSums sum{};
      for (; cell < cells.count() && cells.bucket_of(cell) == b; ++cell) {
        sum.dot += fits[static_cast<size_t>(cell)].dot;
        sum.squares += fits[static_cast<size_t>(cell)].squares;
      }
      scales[b] = fitted_scale(sum, rule.width);
    }
  }

  // Step 3. tops: of the buckets, where scales are there already.
  bool emit(const float* tops) const {
    const int64_t n = cells.n;
    std::vector<CodeWriter::Edge> edges(static_cast<size_t>(2 * parts));
    std::vector<uint32_t> most(static_cast<size_t>(parts));
    parallel_parts(parts, [&](int64_t part) {
      uint32_t& top = most[static_cast<size_t>(part)];
      CodeWriter writer(table, pass, n, rule.width, cells.begin(cells.count() * part / parts),
                        bits);
      for_part(pass, source, cells, part, parts, [&](const Cell& cell, float* acc) {
        top = std::max(top, cell.top);
        if (top >= kInfKey) return;
        const int64_t b = cells.bucket_of(cell.index);
        encode(cell, acc, b, tops == nullptr ? nullptr : tops + b, writer.next());
        writer.advance(cell.size);
        if (source.out != nullptr) store(pass, source, n, cell, acc);
      });
      writer.finish();
      for (int which : {0, 1}) edges[static_cast<size_t>(2 * part + which)] = writer.edge(which);
    });
    if (*std::max_element(most.begin(), most.end()) >= kInfKey) return false;
    merge(edges, rule.width, bits, plane_bytes(n, rule.width));
    return true;
  }

  // The codes of a cell; acc becomes acc - sent where it is to be stored. top: null where the cell
  // is a bucket of its own.
  void encode(const Cell& cell, float* acc, int64_t b, const float* top, uint8_t* code) const {
    const int64_t n = cell.size;
    float* const scale = scales + (kind == CodeTable::kValues ? 2 * b : b);
    if (kind == CodeTable::kValues) {
      if (top == nullptr) {
        Sides sides{};
        table.tally_sides(acc, n, cell.top, cell.ahead, &sides);
        put_means(sides, b);
      }
      table.sides(acc, n, code);
      if (source.out != nullptr) table.sides_subtract(acc, n, scale);
      return;
    }
    const float highest = top == nullptr ? float_of(cell.top) : *top;
    FitSums sums{};
    if (highest > 0 && kind == CodeTable::kUniform)
      table.grid(acc, n, highest, rule, cell.begin, cell.ahead, code,
                 fit && top == nullptr ? &sums : nullptr);
    if (highest > 0 && kind == CodeTable::kDynamic8)
      table.dynamic(acc, n, highest, cell.ahead, code);
    if (top == nullptr) {
      *scale = highest;
      if (fit && highest > 0) *scale = fitted_scale(sums, rule.width);
    }
    if (!(*scale > 0))
      std::memset(code, static_cast<int>(code_of_zero(kind, rule.width)), static_cast<size_t>(n));
    if (source.out == nullptr || !(*scale > 0)) return;
    if (kind == CodeTable::kUniform) {
      table.grid_subtract(acc, n, *scale, rule.width, code);
    } else {
      table.dynamic_subtract(acc, n, *scale, code);
    }
  }

  bool emit_halves() const {
    const auto encode = kind == CodeTable::kFloat16 ? table.halves : table.bfloats;
    return all_finite(pass, source, cells, parts, [&](const Cell& cell, float* acc) {
      encode(acc, cell.size, reinterpret_cast<uint16_t*>(bits) + cell.begin);
      if (source.out != nullptr) store(pass, source, cells.n, cell, acc);
    });
  }
};

// Only what uniform buckets are fitted by depends on the order of addition.
Cells cells_of(CodeTable kind, int64_t n, int64_t bucket) {
  const bool half = kind == CodeTable::kFloat16 || kind == CodeTable::kBfloat16;
  const bool whole = bucket <= kCell || kind == CodeTable::kUniform;
  return Cells(n, bucket, whole && !half ? kCell : kPiece);
}

std::tuple<Tensor, Tensor, Tensor> encode_codes(const Tensor& tensor,
                                                const std::optional<Tensor>& memory,
                                                const std::optional<Tensor>& out, double decay,
                                                int64_t table, int64_t width, int64_t bucket,
                                                bool random, bool fit, int64_t seed) {
  const HostSource source = quantize_args(tensor, memory, out, decay);
  check_encode_codes(table, width, bucket, random, fit);
  const int64_t n = tensor.numel();
  const CodeTable kind = static_cast<CodeTable>(table);
  const int bits_each = static_cast<int>(width);
  const Cells cells =
      cells_of(kind, n, bucket == 0 || bucket > n ? std::max<int64_t>(n, 1) : bucket);
  Tensor scales =
             empty(floats_per_bucket(kind, bits_each) * cells.buckets(), ScalarType::Float, tensor),
         bits = pooled_empty(plane_bytes(n, bits_each), ScalarType::Byte), info = no_info(tensor);
  if (n == 0) return {scales, bits, info};
  const KernelFpEnv env;
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  Encoder encoder{source,
                  cells,
                  std::min(parts_for(n, kGrain), cells.count()),
                  kind,
                  {bits_each, random, mixed(static_cast<uint64_t>(seed))},
                  fit,
                  scales.mutable_data_ptr<float>(),
                  bits.mutable_data_ptr<uint8_t>()};
  try {
    if (encoder.run()) {
      field[kInfoCount] = n;
    } else {
      report(source, n, field);
    }
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
  }
  return {scales, bits, info};
}

}  // namespace

GCEXT_OPERATOR(CPU, encode_codes,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, int table, int "
               "width, int bucket, bool random, bool fit, int seed) -> (Tensor scales, Tensor "
               "bits, Tensor info)")

}  // namespace gcext
