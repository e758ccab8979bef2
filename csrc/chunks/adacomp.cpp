#include "adacomp.h"

#include <tuple>

#include "../common/marked.h"
#include "../common/pool.h"
#include "../quantize_pass.h"
#include "arguments.h"

namespace gcext {
namespace {

// 1. Pass over the bins: the sum, gmax, its mantissa for the scale, how many are chosen.
// 2. Report what is not finite, or find the scale.
// 3. Pass over the bins again: sum once more, emit, and write out what was not sent.
//
// So nothing is written before all sums are known to be finite.

struct Job {
  HostSource source;
  int64_t n, bin;
  const AdaCompTable& table = GCEXT_TABLE(adacomp_table);
  const QuantizeTable& quantize = GCEXT_TABLE(quantize_table);

  int64_t bins() const { return n / bin + (n % bin != 0); }
};

struct Part {
  std::vector<float> sum;        // of as many whole bins as fit kCell elements, but one at least
  std::vector<uint64_t> chosen;  // words, of a bin
  int64_t count = 0;             // chosen in all
  uint32_t top = 0;              // the largest key
  uint64_t bins[kBins] = {};
};

struct Bin {
  int64_t begin, size;
  uint32_t gmax;
};

// body(bin, sums) for the bins of a part, and end(begin, n, sums) after as many of them as the
// buffer holds.
template <class Body, class End>
void for_bins(const Job& job, Part& own, int64_t part, int64_t parts, const Body& body,
              const End& end) {
  const int64_t from = job.bins() * part / parts * job.bin;
  const int64_t until = std::min(job.n, job.bins() * (part + 1) / parts * job.bin);
  const int64_t step = std::max(int64_t{1}, kCell / job.bin) * job.bin;
  float* const sum = own.sum.data();
  for (int64_t at = from; at < until; at += step) {
    const int64_t n = std::min(step, until - at);
    for (int64_t i = 0; i < n; i += kCell) {
      const int64_t m = std::min(kCell, n - i);
      own.top = std::max(own.top, job.quantize.accumulate(job.source, at + i, m, sum + i));
    }
    for (int64_t i = 0; i < n; i += job.bin) {
      const int64_t size = std::min(job.bin, n - i);
      body(Bin{at + i, size, job.table.largest(sum + i, size)}, sum + i);
    }
    end(at, n, sum);
  }
}

// Steps 1 and 2. Returns whether to go on: info has no status, and something is chosen or kept.
bool tally(const Job& job, std::vector<Part>& parts, int64_t* info) {
  const int64_t count = static_cast<int64_t>(parts.size());
  parallel_parts(count, [&](int64_t i) {
    Part& own = parts[static_cast<size_t>(i)];
    const auto body = [&](const Bin& bin, const float* sum) {
      if (bin.gmax >= kInfKey) return;
      own.bins[bin_of(bin.gmax)] += mantissa_of(bin.gmax);
      own.count += job.table.choose(sum, job.source.tensor + bin.begin, bin.size, bin.gmax,
                                    own.chosen.data());
    };
    for_bins(job, own, i, count, body, [](int64_t, int64_t, const float*) {});
  });
  uint64_t bins[kBins] = {};
  int64_t chosen = 0;
  for (const Part& part : parts) {
    if (part.top >= kInfKey) {
      report(job.source, job.n, info);
      return false;
    }
    chosen += part.count;
    for (int bin = 0; bin < kBins; ++bin) bins[bin] += part.bins[bin];
  }
  const uint32_t scale = exact_mean_bits(bins, static_cast<uint64_t>(job.bins()));
  info[kInfoCount] = scale == 0 ? 0 : chosen;
  info[kInfoMean] = chosen == 0 ? 0 : scale;
  return info[kInfoCount] > 0 || job.source.out != nullptr;
}

// Step 3, of a part whose entries begin at `at`.
template <class Index>
void emit(const Job& job, Part& own, int64_t part, int64_t parts, uint32_t scale, Index* index,
          float* value) {
  PairsTo<Index> to{index, value};
  const auto sent = [&](float sum) { return with_sign_of(scale, sum); };
  const auto body = [&](const Bin& bin, float* sum) {
    if (scale == 0) return;
    job.table.choose(sum, job.source.tensor + bin.begin, bin.size, bin.gmax, own.chosen.data());
    to.put(own.chosen.data(), bin.begin, bin.size, sum, sum, sent);
  };
  for_bins(job, own, part, parts, body, [&](int64_t begin, int64_t n, const float* sum) {
    if (job.source.out != nullptr) store(job.quantize, job.source, job.n, begin, n, sum);
  });
}

std::tuple<Tensor, Tensor, Tensor> adacomp(const Tensor& tensor,
                                           const std::optional<Tensor>& memory,
                                           const std::optional<Tensor>& out, double decay,
                                           int64_t bin) {
  check_bin(bin);
  const int64_t n = tensor.numel();
  const Job job{source_args("adacomp", tensor, memory, out, 1, decay), n, bin};
  const ScalarType wide = n > INT32_MAX ? ScalarType::Long : ScalarType::Int;
  Tensor info = no_info(tensor);
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  const auto answer = [&] {
    return std::tuple(pooled_empty(field[kInfoCount], wide),
                      pooled_empty(field[kInfoCount], ScalarType::Float), info);
  };
  if (n == 0) return answer();
  const KernelFpEnv env;
  const int64_t count = std::min(parts_for(n, kGrain), job.bins());
  std::vector<Part> parts;
  try {
    parts.resize(static_cast<size_t>(count));
    for (Part& each : parts) {
      each.sum.resize(static_cast<size_t>(std::max(kCell, std::min(n, bin))));
      each.chosen.resize(static_cast<size_t>(std::min(n, bin) / 64 + 1));
    }
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
    return answer();
  }
  if (!tally(job, parts, field)) return answer();
  auto result = answer();
  auto& [index, value, _] = result;
  std::vector<int64_t> at(1);
  for (const Part& each : parts) at.push_back(at.back() + each.count);
  const uint32_t scale = static_cast<uint32_t>(field[kInfoMean]);
  float* const values = value.mutable_data_ptr<float>();
  const auto emit_all = [&](auto* indices) {
    parallel_parts(count, [&](int64_t i) {
      const int64_t first = scale == 0 ? 0 : at[static_cast<size_t>(i)];
      emit(job, parts[static_cast<size_t>(i)], i, count, scale, indices + first, values + first);
    });
  };
  if (wide == ScalarType::Long) {
    emit_all(index.mutable_data_ptr<int64_t>());
  } else {
    emit_all(index.mutable_data_ptr<int32_t>());
  }
  return result;
}

}  // namespace

GCEXT_OPERATOR(CPU, adacomp,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, int bin) -> (Tensor "
               "index, Tensor value, Tensor info)")

}  // namespace gcext
