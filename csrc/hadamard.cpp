#include "hadamard.h"

#include <cstring>

#include "common/arguments.h"

namespace gcext {
namespace {

void signs_of(uint64_t key, int64_t chunk, int64_t words, int round, std::vector<uint64_t>* sign) {
  for (int64_t i = 0; i < words; ++i) (*sign)[i] = hadamard_signs(key, chunk * words + i, round);
}

Tensor hadamard(const Tensor& values, int64_t size, int64_t seed, bool inverse) {
  check_dense(values, ScalarType::Float, "hadamard: values");
  const int64_t n = values.numel(), chunks = n / size;
  const int level = hadamard_level(n, size);
  Tensor out = empty(n, ScalarType::Float, values);
  const float* const from = values.const_data_ptr<float>();
  float* const to = out.mutable_data_ptr<float>();
  const HadamardTable& table = GCEXT_TABLE(hadamard_table);
  const uint64_t key = mixed(static_cast<uint64_t>(seed));
  if (chunks == 0) return out;
  const int64_t parts = std::min(chunks, parts_for(n, int64_t{1} << 14));
  parallel_parts(parts, [&](int64_t part) {
    const int64_t words = size / 64;
    std::vector<uint64_t> one(static_cast<size_t>(words)), two(one), none(one);
    const int64_t last = chunks * (part + 1) / parts;
    for (int64_t chunk = chunks * part / parts; chunk < last; ++chunk) {
      float* x = to + chunk * size;
      std::memcpy(x, from + chunk * size, static_cast<size_t>(size) * sizeof(float));
      signs_of(key, chunk, words, 0, &one);
      signs_of(key, chunk, words, 1, &two);
      table.flip(x, size, inverse ? none.data() : one.data(), hadamard_factor(level, 0));
      table.transform(x, size);
      table.flip(x, size, two.data(), hadamard_factor(level, 1));
      table.transform(x, size);
      if (inverse) table.flip(x, size, one.data(), 1.0f);
    }
  });
  return out;
}

}  // namespace

GCEXT_OPERATOR(CPU, hadamard, "(Tensor values, int size, int seed, bool inverse) -> Tensor")

}  // namespace gcext
