#include "polar.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <tuple>

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

std::tuple<Tensor, Tensor> polar_encode(const Tensor& source, const Tensor& frozen, int64_t free,
                                        int64_t numel, double weight, int64_t correction) {
  const bool soft = check_polar_source(source, numel);
  check_polar_steps(weight, correction);
  const PolarCode code = read_polar_code(frozen);
  check_polar_free(free, code.kept());
  const PolarGroups groups(numel, code.block());
  const PolarTable& table = GCEXT_TABLE(polar_table);
  Tensor message = empty(groups.message_bytes(code.kept()), ScalarType::Byte, source);
  Tensor bad = empty(1, ScalarType::Long, source);
  *bad.mutable_data_ptr<int64_t>() = -1;
  const void* const from = source.const_data_ptr();
  uint8_t* const to = message.mutable_data_ptr<uint8_t>();
  const int64_t block = code.block(), kept = code.kept();
  // A root that is itself a leaf starts from LLRs.
  const bool branches = code.op[0].step <= PolarStep::sum;
  std::atomic<bool> finite{true};

  const int64_t parts =
      std::min(groups.count, parts_for(groups.count * 64 * block, int64_t{1} << 16));
  if (parts > 0)
    parallel_parts(parts, [&](int64_t part) {
      Work memory(block);
      const PolarWork work = memory.view();
      int8_t* const root = work.llr + kPolarLanes * block;
      std::vector<uint64_t> signs(static_cast<size_t>(block));
      std::vector<uint64_t> rows(static_cast<size_t>(kept) + 1);
      std::vector<float> padded;
      const int64_t last = groups.count * (part + 1) / parts;
      for (int64_t group = groups.count * part / parts; group < last; ++group) {
        const int64_t start = groups.start(group), n = groups.symbols(group);
        const int64_t lanes = groups.lanes_of(group);
        const uint64_t* words = nullptr;
        if (soft) {
          const float* value = static_cast<const float*>(from) + start;
          if (!groups.whole(group)) {
            padded.assign(static_cast<size_t>(kPolarLanes * block), 0.0f);
            for (int64_t i = 0; i < n; ++i) padded[i / lanes * kPolarLanes + i % lanes] = value[i];
            value = padded.data();
          }
          if (!quantise_group(table, value, block, n, weight, root)) {
            finite = false;
            return;
          }
        } else {
          const uint8_t* packed = static_cast<const uint8_t*>(from) + start / 8;
          if (groups.whole(group)) {
            std::memcpy(signs.data(), packed, static_cast<size_t>(block) * sizeof(uint64_t));
          } else {
            spread_rows(packed, n, block, lanes, signs.data());
          }
          if (branches && groups.whole(group)) {
            words = signs.data();
          } else {
            const int8_t one = static_cast<int8_t>(weight);
            for (int64_t i = 0; i < block; ++i) {
              for (int64_t j = 0; j < kPolarLanes; ++j) {
                const int8_t llr = (signs[i] >> j) & 1 ? static_cast<int8_t>(-one) : one;
                root[i * kPolarLanes + j] = j < lanes && i * lanes + j < n ? llr : int8_t{0};
              }
            }
          }
        }
        PolarAhead ahead = {};
        if (soft && group + 1 < last) {
          ahead = {reinterpret_cast<const char*>(static_cast<const float*>(from) +
                                                 groups.start(group + 1)),
                   groups.symbols(group + 1) * static_cast<int64_t>(sizeof(float))};
        }
        table.encode(code.program(), words, static_cast<int8_t>(weight),
                     static_cast<int>(correction), work, rows.data(), ahead);
        uint8_t* out = to + group * kept * 8;
        if (lanes == kPolarLanes) {
          std::memcpy(out, rows.data(), static_cast<size_t>(kept) * sizeof(uint64_t));
        } else {
          gather_rows(rows.data(), kept, lanes, kept * lanes, out);
        }
      }
    });
  if (!finite) {
    const float* value = static_cast<const float*>(from);
    int64_t at = 0;
    while (std::isfinite(value[at])) ++at;
    *bad.mutable_data_ptr<int64_t>() = at;
  }
  return {message, bad};
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
  Tensor packed = empty((numel + 7) / 8, ScalarType::Byte, message);
  const uint8_t* const from = message.const_data_ptr<uint8_t>();
  uint8_t* const to = packed.mutable_data_ptr<uint8_t>();
  const int64_t parts =
      std::min(groups.count, parts_for(groups.count * 64 * block, int64_t{1} << 18));
  if (parts > 0)
    parallel_parts(parts, [&](int64_t part) {
      std::vector<uint64_t> word(static_cast<size_t>(block));
      std::vector<uint64_t> rows(static_cast<size_t>(kept) + 1);
      const int64_t last = groups.count * (part + 1) / parts;
      for (int64_t group = groups.count * part / parts; group < last; ++group) {
        const int64_t lanes = groups.lanes_of(group);
        const uint8_t* in = from + group * kept * 8;
        if (lanes == kPolarLanes) {
          std::memcpy(rows.data(), in, static_cast<size_t>(kept) * sizeof(uint64_t));
        } else {
          spread_rows(in, kept * lanes, kept, lanes, rows.data());
        }
        std::memset(word.data(), 0, static_cast<size_t>(block) * sizeof(uint64_t));
        for (int64_t i = 0; i < kept; ++i) word[code.free[i]] = rows[i];
        table.transform(word.data(), block);
        uint8_t* out = to + groups.start(group) / 8;
        if (groups.whole(group)) {
          std::memcpy(out, word.data(), static_cast<size_t>(block) * sizeof(uint64_t));
        } else {
          gather_rows(word.data(), block, lanes, groups.symbols(group), out);
        }
      }
    });
  return packed;
}

constexpr int64_t kGrain = int64_t{1} << 20;

Tensor polar_pack(const Tensor& symbols) {
  check_dense(symbols, ScalarType::Byte, "polar: symbols");
  const int64_t n = symbols.numel(), whole = n / 8 * 8;
  Tensor packed = empty((n + 7) / 8, ScalarType::Byte, symbols);
  const uint8_t* const from = symbols.const_data_ptr<uint8_t>();
  uint8_t* const to = packed.mutable_data_ptr<uint8_t>();
  const PolarTable& table = GCEXT_TABLE(polar_table);
  const int64_t parts = parts_for(whole, kGrain);
  parallel_parts(parts, [&](int64_t part) {
    const int64_t begin = whole / 8 * part / parts, end = whole / 8 * (part + 1) / parts;
    table.pack(from + 8 * begin, 8 * (end - begin), to + begin);
  });
  if (whole < n) to[whole / 8] = 0;
  for (int64_t i = whole; i < n; ++i) {
    to[i / 8] = static_cast<uint8_t>(to[i / 8] | (from[i] != 0) << (i % 8));
  }
  return packed;
}

Tensor polar_unpack(const Tensor& packed, int64_t numel) {
  check_polar_packed(packed, numel);
  const int64_t whole = numel / 8 * 8;
  Tensor symbols = empty(numel, ScalarType::Byte, packed);
  const uint8_t* const from = packed.const_data_ptr<uint8_t>();
  uint8_t* const to = symbols.mutable_data_ptr<uint8_t>();
  const PolarTable& table = GCEXT_TABLE(polar_table);
  const int64_t parts = parts_for(whole, kGrain);
  parallel_parts(parts, [&](int64_t part) {
    const int64_t begin = whole / 8 * part / parts, end = whole / 8 * (part + 1) / parts;
    table.unpack(from + begin, 8 * (end - begin), to + 8 * begin);
  });
  for (int64_t i = whole; i < numel; ++i) to[i] = (from[i / 8] >> (i % 8)) & 1;
  return symbols;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) {
  m.def(
      "polar_encode(Tensor source, Tensor frozen, int free, int numel, float weight, int "
      "correction)"
      " -> (Tensor message, Tensor bad)");
  m.def("polar_decode(Tensor message, Tensor frozen, int numel) -> Tensor");
  m.def("polar_pack(Tensor symbols) -> Tensor");
  m.def("polar_unpack(Tensor packed, int numel) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gcext, CPU, m) {
  m.impl("polar_encode", TORCH_BOX(&polar_encode));
  m.impl("polar_decode", TORCH_BOX(&polar_decode));
  m.impl("polar_pack", TORCH_BOX(&polar_pack));
  m.impl("polar_unpack", TORCH_BOX(&polar_unpack));
}

}  // namespace gcext
