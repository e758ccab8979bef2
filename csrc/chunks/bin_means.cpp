#include "bin_means.h"

#include <cstring>
#include <tuple>
#include <utility>

#include "../bits.h"
#include "../common/pool.h"
#include "arguments.h"

namespace gcext {
namespace {

// 1. Sums of every cell, and from them the rule.
// 2. Codes, packed; what each one's mean is made of.
// 3. The means; out.

constexpr int64_t kGrain = 16384;  // values that are worth a thread
constexpr int64_t kAhead = 64;     // places whose lines are prefetched

struct Job {
  const void* index;  // int64 if `wide`, else int32
  bool wide;
  const float* value;
  int64_t k;
  float* out;
  int bits;
  float* table;
  uint8_t* packed;

  int64_t place(int64_t i) const {
    return wide ? static_cast<const int64_t*>(index)[i] : static_cast<const int32_t*>(index)[i];
  }
};

// body(part, first, last) for parts of whole cells.
template <class Body>
void for_parts(int64_t k, int64_t parts, const Body& body) {
  const int64_t cells = (k + kBinCell - 1) / kBinCell;
  parallel_parts(parts, [&](int64_t part) {
    const int64_t first = cells * part / parts * kBinCell;
    body(part, first, std::min(k, cells * (part + 1) / parts * kBinCell));
  });
}

BinSums cell_sums(const float* value, int64_t n) {
  double sum[kLanes] = {}, squares[kLanes] = {};
  for (int64_t at = 0; at < n; at += kLanes) {
    for (int64_t j = 0; j < kLanes && at + j < n; ++j) {
      const double x = value[at + j];
      sum[j] += x;
      squares[j] += x * x;
    }
  }
  return {add_lanes(sum), add_lanes(squares)};
}

void run(const Job& job, double range) {
  const KernelFpEnv env;
  const int64_t k = job.k, cells = (k + kBinCell - 1) / kBinCell;
  const int32_t codes = int32_t{1} << job.bits;
  const int64_t parts = std::max(int64_t{1}, std::min(parts_for(k, kGrain), cells));
  std::vector<BinSums> sums(static_cast<size_t>(cells));
  const size_t slots = static_cast<size_t>(codes) * kBinSlots;
  std::vector<uint64_t> bins(slots * static_cast<size_t>(parts));
  std::vector<uint8_t> all(static_cast<size_t>(k));
  for_parts(k, parts, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t at = first; at < last; at += kBinCell)
      sums[static_cast<size_t>(at / kBinCell)] =
          cell_sums(job.value + at, std::min(kBinCell, last - at));
  });
  BinSums whole{0.0, 0.0};
  for (const BinSums& each : sums) {
    whole.sum += each.sum;
    whole.squares += each.squares;
  }
  const BinRule rule = bin_rule(whole, k, codes, range);

  for_parts(k, parts, [&](int64_t part, int64_t first, int64_t last) {
    uint64_t* const own = bins.data() + slots * static_cast<size_t>(part);
    uint32_t codes_of[kBinCell];
    for (int64_t at = first; at < last; at += kBinCell) {
      const int64_t n = std::min(kBinCell, last - at);
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t bits = bits_of(job.value[at + i]);
        const uint32_t code = bin_code(rule, job.value[at + i], at + i);
        codes_of[i] = code;
        all[static_cast<size_t>(at + i)] = static_cast<uint8_t>(code);
        uint64_t* const its = own + code * kBinSlots;
        its[bin_of(key_of(bits))] += signed_mantissa(bits);
        ++its[kBins];
      }
      bits().pack(codes_of, n, job.bits, job.packed + at / 8 * job.bits);
    }
  });
  for (int64_t part = 1; part < parts; ++part) {
    for (size_t i = 0; i < slots; ++i) bins[i] += bins[slots * static_cast<size_t>(part) + i];
  }
  for (int32_t c = 0; c < codes; ++c) {
    const uint64_t* const its = bins.data() + static_cast<size_t>(c) * kBinSlots;
    job.table[c] = its[kBins] == 0 ? 0.0f : float_of(exact_signed_mean_bits(its, its[kBins]));
  }
  if (job.out == nullptr) return;
  for_parts(k, parts, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (i + kAhead < last) __builtin_prefetch(job.out + job.place(i + kAhead), 1);
      job.out[job.place(i)] = job.value[i] - job.table[all[static_cast<size_t>(i)]];
    }
  });
}

template <class Index>
std::pair<int64_t, int64_t> ends(const Index* index, int64_t k) {
  Index least = 0, most = 0;
  for (int64_t i = 0; i < k; ++i) {
    least = index[i] < least ? index[i] : least;
    most = index[i] > most ? index[i] : most;
  }
  return {least, most};
}

// Back to the sum, as memory ran out.
void put_back(const Job& job) {
  for (int64_t i = 0; i < job.k && job.out != nullptr; ++i) job.out[job.place(i)] = job.value[i];
}

std::tuple<Tensor, Tensor> bin_means(const Tensor& index, const Tensor& value, const Tensor& info,
                                     const std::optional<Tensor>& out, int64_t bits, double range) {
  check_bin_means(index, value, info, out, bits, range);
  const int64_t* const field = info.const_data_ptr<int64_t>();
  GCEXT_CHECK(field[kInfoCount] >= 0 && field[kInfoCount] <= value.numel(),
              "bin_means: info must be of these values, got a count of ", field[kInfoCount], ".");
  Job job{};
  job.index = index.const_data_ptr();
  job.wide = index.scalar_type() == ScalarType::Long;
  job.value = value.const_data_ptr<float>();
  job.k = field[kInfoStatus] == kSelectOk ? field[kInfoCount] : 0;
  job.bits = static_cast<int>(bits);
  if (out.has_value()) {
    const auto [least, most] = job.wide ? ends(index.const_data_ptr<int64_t>(), job.k)
                                        : ends(index.const_data_ptr<int32_t>(), job.k);
    GCEXT_CHECK(job.k == 0 || (least >= 0 && most < out->numel()),
                "bin_means: index must be within out, got ", least, " and ", most, " of ",
                out->numel(), ".");
  }
  if (out.has_value()) job.out = out->mutable_data_ptr<float>();
  try {
    Tensor table = empty(int64_t{1} << bits, ScalarType::Float, value);
    Tensor packed = pooled_empty(bin_bytes(value.numel(), bits), ScalarType::Byte);
    job.table = table.mutable_data_ptr<float>();
    job.packed = packed.mutable_data_ptr<uint8_t>();
    run(job, range);
    return {table, packed};
  } catch (...) {
    put_back(job);
    throw;
  }
}

}  // namespace

GCEXT_OPERATOR(CPU, bin_means,
               "(Tensor index, Tensor value, Tensor info, Tensor(a!)? out, int bits, float range) "
               "-> (Tensor table, Tensor packed)")

}  // namespace gcext
