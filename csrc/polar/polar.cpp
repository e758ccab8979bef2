#include "polar.h"

#include <cstdlib>
#include <memory>

#include "../common/pool.h"
#include "polar_code.h"

namespace gcext {
namespace {

// Aligned memory for one group.
class Work {
 public:
  explicit Work(int64_t block)
      : llr_(static_cast<int8_t*>(std::aligned_alloc(64, static_cast<size_t>(2 * 64 * block)))),
        codeword_(static_cast<size_t>(block)) {
    if (llr_ == nullptr) throw std::bad_alloc();
  }
  PolarWork view() { return {llr_.get(), codeword_.data()}; }

 private:
  struct Free {
    void operator()(int8_t* p) const { std::free(p); }
  };
  std::unique_ptr<int8_t, Free> llr_;
  std::vector<uint64_t> codeword_;
};

// Runs body(first, last) on contiguous ranges of groups, a range a thread, of `grain` symbols or
// more.
template <class Body>
void for_groups(const PolarGroups& groups, int64_t grain, const Body& body) {
  const int64_t parts =
      std::min(groups.count, parts_for(groups.count * kPolarLanes * groups.block, grain));
  if (parts == 0) return;
  parallel_parts(parts, [&](int64_t part) {
    body(groups.count * part / parts, groups.count * (part + 1) / parts);
  });
}

// Scales one group to LLRs. False where a value is not finite.
bool quantise_group(const PolarTable& table, const float* value, int64_t rows, int64_t count,
                    double weight, int8_t* llr) {
  const auto sum_of = [&](float factor) {
    float lane[kPolarLanes];
    table.magnitudes(value, rows, factor, lane);
    double sum = 0;
    for (const float x : lane) sum += static_cast<double>(x);
    return sum;
  };
  double sum = sum_of(1.0f);
  const float factor = polar_factor(sum);
  if (factor != 1.0f) sum = sum_of(factor);
  if (!std::isfinite(sum)) return false;
  table.quantise(value, rows, factor, polar_scale(sum, weight, count), llr);
  return true;
}

std::tuple<Tensor, Tensor, Tensor> polar_encode(const Tensor& source, const Tensor& frozen,
                                                int64_t free, int64_t numel, double weight,
                                                int64_t correction, bool symbols) {
  check_polar_steps(weight, correction);
  PolarEncoding encoding(source, frozen, free, numel);
  Tensor packed = pooled_empty(symbols ? (numel + 7) / 8 : 0, ScalarType::Byte);
  uint8_t* const codeword = packed.mutable_data_ptr<uint8_t>();
  const PolarGroups& groups = encoding.groups;
  const PolarProgram program = encoding.code.program();
  const int64_t block = encoding.code.block();
  const int8_t step = static_cast<int8_t>(weight);
  const PolarTable& table = GCEXT_TABLE(polar_table);
  // A root that is itself a leaf starts from LLRs.
  const bool branches = program.op[0].step <= PolarStep::sum;
  for_groups(groups, int64_t{1} << 16, [&](int64_t first, int64_t last) {
    Work memory(block);
    const PolarWork work = memory.view();
    int8_t* const root = work.llr + kPolarLanes * block;
    std::vector<uint64_t> signs(static_cast<size_t>(block));
    std::vector<uint64_t> rows(static_cast<size_t>(free) + 1);
    std::vector<float> padded;
    for (int64_t group = first; group < last; ++group) {
      const int64_t start = groups.start(group), n = groups.symbols(group);
      const int64_t lanes = groups.lanes_of(group);
      const bool whole = groups.whole(group);
      const uint64_t* words = nullptr;
      if (encoding.soft) {
        const float* value = encoding.values() + start;
        if (!whole) {
          padded.assign(static_cast<size_t>(kPolarLanes * block), 0.0f);
          for (int64_t i = 0; i < n; ++i) padded[i / lanes * kPolarLanes + i % lanes] = value[i];
          value = padded.data();
        }
        if (!quantise_group(table, value, block, n, weight, root)) {
          encoding.finite = false;
          return;
        }
      } else {
        read_rows(encoding.packed() + start / 8, n, block, lanes, signs.data());
        if (branches && whole) {
          words = signs.data();
        } else {
          for (int64_t i = 0; i < block; ++i) {
            for (int64_t j = 0; j < kPolarLanes; ++j) {
              const int8_t llr = (signs[i] >> j) & 1 ? static_cast<int8_t>(-step) : step;
              root[i * kPolarLanes + j] = j < lanes && i * lanes + j < n ? llr : int8_t{0};
            }
          }
        }
      }
      PolarAhead ahead = {};
      if (encoding.soft && group + 1 < last) {
        ahead = {reinterpret_cast<const char*>(encoding.values() + groups.start(group + 1)),
                 groups.symbols(group + 1) * static_cast<int64_t>(sizeof(float))};
      }
      table.encode(program, words, step, static_cast<int>(correction), work, rows.data(), ahead);
      encoding.write(group, rows.data());
      if (symbols) write_rows(work.codeword, block, lanes, n, codeword + start / 8);
    }
  });
  const auto [message, bad] = encoding.result();
  return {message, bad, packed};
}

Tensor polar_decode(const Tensor& message, const Tensor& frozen, int64_t numel) {
  check_dense(message, ScalarType::Byte, "polar: message");
  GCEXT_CHECK(numel >= 0, "polar: numel must not be negative, got ", numel, ".");
  const PolarCode code = read_polar_code(frozen);
  const PolarGroups groups(numel, code.block());
  const int64_t block = code.block(), kept = code.kept();
  GCEXT_CHECK(message.numel() == groups.message_bytes(kept),
              "polar: message must have K bits a block, got ", message.numel(), " bytes for ",
              groups.blocks(), " blocks of ", kept, ".");
  const PolarTable& table = GCEXT_TABLE(polar_table);
  Tensor packed = pooled_empty((numel + 7) / 8, ScalarType::Byte);
  const uint8_t* const from = message.const_data_ptr<uint8_t>();
  uint8_t* const to = packed.mutable_data_ptr<uint8_t>();
  for_groups(groups, int64_t{1} << 18, [&](int64_t first, int64_t last) {
    std::vector<uint64_t> word(static_cast<size_t>(block));
    std::vector<uint64_t> rows(static_cast<size_t>(kept) + 1);
    for (int64_t group = first; group < last; ++group) {
      const int64_t lanes = groups.lanes_of(group);
      read_rows(from + group * kept * 8, kept * lanes, kept, lanes, rows.data());
      std::memset(word.data(), 0, static_cast<size_t>(block) * sizeof(uint64_t));
      for (int64_t i = 0; i < kept; ++i) word[code.free[i]] = rows[i];
      table.transform(word.data(), block);
      write_rows(word.data(), block, lanes, groups.symbols(group), to + groups.start(group) / 8);
    }
  });
  return packed;
}

// Runs body(begin, end) on bytes of whole eight symbols, each part its own range of them.
template <class Body>
void for_bytes(int64_t bytes, const Body& body) {
  const int64_t parts = parts_for(8 * bytes, int64_t{1} << 20);
  parallel_parts(parts,
                 [&](int64_t part) { body(bytes * part / parts, bytes * (part + 1) / parts); });
}

Tensor polar_pack(const Tensor& symbols) {
  check_dense(symbols, ScalarType::Byte, "polar: symbols");
  const int64_t n = symbols.numel(), bytes = n / 8;
  Tensor packed = pooled_empty((n + 7) / 8, ScalarType::Byte);
  const uint8_t* const from = symbols.const_data_ptr<uint8_t>();
  uint8_t* const to = packed.mutable_data_ptr<uint8_t>();
  const PolarTable& table = GCEXT_TABLE(polar_table);
  for_bytes(bytes, [&](int64_t begin, int64_t end) {
    table.pack(from + 8 * begin, 8 * (end - begin), to + begin);
  });
  if (n % 8 != 0) {
    uint8_t last[8] = {};
    std::memcpy(last, from + 8 * bytes, static_cast<size_t>(n % 8));
    table.pack(last, 8, to + bytes);
  }
  return packed;
}

Tensor polar_unpack(const Tensor& packed, int64_t numel) {
  check_polar_packed(packed, numel);
  const int64_t bytes = numel / 8;
  Tensor symbols = pooled_empty(numel, ScalarType::Byte);
  const uint8_t* const from = packed.const_data_ptr<uint8_t>();
  uint8_t* const to = symbols.mutable_data_ptr<uint8_t>();
  const PolarTable& table = GCEXT_TABLE(polar_table);
  for_bytes(bytes, [&](int64_t begin, int64_t end) {
    table.unpack(from + begin, 8 * (end - begin), to + 8 * begin);
  });
  if (numel % 8 != 0) {
    uint8_t last[8];
    table.unpack(from + bytes, 8, last);
    std::memcpy(to + 8 * bytes, last, static_cast<size_t>(numel % 8));
  }
  return symbols;
}

}  // namespace

GCEXT_OPERATOR(CPU, polar_encode,
               "(Tensor source, Tensor frozen, int free, int numel, float weight, int "
               "correction, bool symbols) -> (Tensor message, Tensor bad, Tensor symbols)")
GCEXT_OPERATOR(CPU, polar_decode, "(Tensor message, Tensor frozen, int numel) -> Tensor")
GCEXT_OPERATOR(CPU, polar_pack, "(Tensor symbols) -> Tensor")
GCEXT_OPERATOR(CPU, polar_unpack, "(Tensor packed, int numel) -> Tensor")

}  // namespace gcext
