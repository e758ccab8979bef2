#include "natural.h"

#include <tuple>

#include "common/arguments.h"
#include "common/pool.h"
#include "quantize_pass.h"

namespace gcext {
namespace {

std::tuple<Tensor, Tensor> natural(const Tensor& tensor, const std::optional<Tensor>& memory,
                                   const std::optional<Tensor>& out, double decay, double scale,
                                   int64_t seed) {
  const HostSource source = quantize_args(tensor, memory, out, decay);
  const float by = check_natural_scale(scale);
  const int64_t n = tensor.numel();
  Tensor power = pooled_empty(n, ScalarType::Short), info = no_info(tensor);
  if (n == 0) return {power, info};
  const KernelFpEnv env;
  const QuantizeTable& pass = GCEXT_TABLE(quantize_table);
  const NaturalTable& table = GCEXT_TABLE(natural_table);
  const Cells cells(n, n, kPiece);
  const int64_t parts = std::min(parts_for(n, kGrain), cells.count());
  const uint64_t key = mixed(static_cast<uint64_t>(seed));
  const int32_t most = most_power(by);
  int16_t* const drawn = power.mutable_data_ptr<int16_t>();
  int64_t* const field = info.mutable_data_ptr<int64_t>();

  const bool finite =
      may_write(pass, source, cells, parts) &&
      all_finite(pass, source, cells, parts, [&](const Cell& cell, float* acc) {
        alignas(64) int16_t own[kPiece];
        int16_t* const to = drawn + cell.begin;
        table.draw(acc, cell.size, key, static_cast<uint64_t>(cell.begin), most,
                   source.out == nullptr ? 0 : by, cell.ahead, n > kCached ? own : to);
        if (n > kCached) put(pass, n, own, cell.size, to);
        if (source.out != nullptr) store(pass, source, n, cell, acc);
      });
  if (finite) {
    field[kInfoCount] = n;
  } else {
    report(source, n, field);
  }
  return {power, info};
}

Tensor power_values(const Tensor& power, double scale) {
  const KernelFpEnv env;  // a scale may be denormal
  const float by = check_power_values(power, scale);
  const int64_t n = power.numel();
  Tensor out = pooled_empty(n, ScalarType::Float);
  const int16_t* const from = power.const_data_ptr<int16_t>();
  float* const to = out.mutable_data_ptr<float>();
  const int64_t parts = parts_for(n, kGrain);
  std::atomic<bool> beyond{false};
  parallel_parts(parts, [&](int64_t part) {
    const int64_t first = n * part / parts, size = n * (part + 1) / parts - first;
    const NaturalTable& table = GCEXT_TABLE(natural_table);
    if (table.within(from + first, size)) {
      table.values(from + first, size, by, to + first);
    } else {
      beyond = true;
    }
  });
  GCEXT_CHECK(!beyond, "power_values: powers must be in [-", kPowers - 1, ", ", kPowers - 1,
              "], got another.");
  return out;
}

}  // namespace

GCEXT_OPERATOR(CPU, natural,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, float decay, float scale, int "
               "seed) -> (Tensor power, Tensor info)")
GCEXT_OPERATOR(CPU, power_values, "(Tensor power, float scale) -> Tensor")

}  // namespace gcext
