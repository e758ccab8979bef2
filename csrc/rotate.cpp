#include "rotate.h"

#include <cmath>
#include <cstring>

#include "common/pool.h"
#include "rotate_arguments.h"

namespace gcext {
namespace {

// Rotates one chunk at a time, in place; of one thread.
class Rotation {
 public:
  explicit Rotation(int64_t seed) : seed_(static_cast<uint64_t>(seed)) {}
  void forward(int64_t chunk, int64_t size, float* x) { run(chunk, size, x, false); }
  void back(int64_t chunk, int64_t size, float* x) { run(chunk, size, x, true); }

 private:
  void run(int64_t chunk, int64_t size, float* x, bool inverse) {
    const RotateTable& table = GCEXT_TABLE(rotate_table);
    const int level = rotate_level(size);
    const uint64_t key = rotate_key(seed_, chunk);
    one_.resize(static_cast<size_t>(size / 64)), two_.resize(one_.size());
    for (int64_t i = 0; i < size / 64; ++i) {
      one_[i] = rotate_signs(key, i, 0);
      two_[i] = rotate_signs(key, i, 1);
    }
    table.flip(x, size, inverse ? nullptr : one_.data(), rotate_factor(level, 0));
    table.transform(x, size);
    table.flip(x, size, two_.data(), rotate_factor(level, 1));
    table.transform(x, size);
    if (inverse) table.flip(x, size, one_.data(), 1.0f);
  }

  uint64_t seed_;
  std::vector<uint64_t> one_, two_;
};

// Runs body(chunk, size, rotation) on every chunk, each thread a contiguous range of them.
template <class Body>
void for_chunks(const RotateChunks& chunks, int64_t seed, const Body& body) {
  if (chunks.count == 0) return;
  const int64_t parts = std::min(chunks.count, parts_for(chunks.symbols(), int64_t{1} << 14));
  parallel_parts(parts, [&](int64_t part) {
    Rotation rotation(seed);
    const int64_t last = chunks.count * (part + 1) / parts;
    for (int64_t chunk = chunks.count * part / parts; chunk < last; ++chunk)
      body(chunk, chunks.size_of(chunk), rotation);
  });
}

// A chunk's values, and zeros up to its size.
void copy_padded(const float* from, int64_t n, int64_t size, float* to) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  std::memset(to + n, 0, static_cast<size_t>(size - n) * sizeof(float));
}

std::tuple<Tensor, Tensor> rotate(const Tensor& values, int64_t size, int64_t least, int64_t seed) {
  check_dense(values, ScalarType::Float, "rotate: values");
  const RotateChunks chunks = rotate_chunks(values.numel(), size, least);
  Tensor rotated = pooled_empty(chunks.symbols(), ScalarType::Float);
  Tensor norm = empty(chunks.count, ScalarType::Double, values);
  const float* const from = values.const_data_ptr<float>();
  float* const to = rotated.mutable_data_ptr<float>();
  double* const norms = norm.mutable_data_ptr<double>();
  for_chunks(chunks, seed, [&](int64_t chunk, int64_t n, Rotation& rotation) {
    float* const x = to + chunks.start(chunk);
    copy_padded(from + chunks.start(chunk), chunks.values_of(chunk), n, x);
    norms[chunk] = GCEXT_TABLE(rotate_table).dot(x, x, n);
    rotation.forward(chunk, n, x);
  });
  return {rotated, norm};
}

Tensor rotate_scale(const Tensor& rotated, const Tensor& symbols, const Tensor& norm,
                    const Tensor& bad, const Tensor& info, int64_t size) {
  const RotateChunks chunks = rotate_scale_args(rotated, symbols, norm, bad, info, size);
  Tensor scale = empty(chunks.count, ScalarType::Float, rotated);
  const float* const y = rotated.const_data_ptr<float>();
  const uint8_t* const c = symbols.const_data_ptr<uint8_t>();
  const double* const norms = norm.const_data_ptr<double>();
  float* const scales = scale.mutable_data_ptr<float>();
  for_chunks(chunks, 0, [&](int64_t chunk, int64_t n, Rotation&) {
    const RotateTable& table = GCEXT_TABLE(rotate_table);
    std::vector<float> signs(static_cast<size_t>(n));
    table.spread(c + chunks.start(chunk) / 8, n, 1.0f, signs.data());
    const double agreement = table.dot(y + chunks.start(chunk), signs.data(), n);
    scales[chunk] = rotate_unbiased(norms[chunk], agreement);
  });
  bool wrong = *bad.const_data_ptr<int64_t>() >= 0;
  for (int64_t i = 0; i < chunks.count; ++i) wrong |= !std::isfinite(scales[i]);
  int64_t& status = info.mutable_data_ptr<int64_t>()[kInfoStatus];
  if (wrong && status == kSelectOk) status = kSelectRotated;
  return scale;
}

// Rotates symbols of a scale back to `x`, a whole chunk.
void back(const uint8_t* symbols, float scale, int64_t chunk, int64_t n, Rotation& rotation,
          float* x) {
  GCEXT_TABLE(rotate_table).spread(symbols, n, scale, x);
  rotation.back(chunk, n, x);
}

// Runs body(chunk, size, rotation, x) on every chunk. x has its size, and of it the values that are
// no padding are left at the chunk's place in `to`.
template <class Body>
void fill_chunks(const RotateChunks& chunks, int64_t seed, float* to, const Body& body) {
  for_chunks(chunks, seed, [&](int64_t chunk, int64_t n, Rotation& rotation) {
    float* const place = to + chunks.start(chunk);
    const int64_t count = chunks.values_of(chunk);
    if (count == n) return body(chunk, n, rotation, place);
    std::vector<float> padded(static_cast<size_t>(n));
    body(chunk, n, rotation, padded.data());
    std::memcpy(place, padded.data(), static_cast<size_t>(count) * sizeof(float));
  });
}

Tensor rotate_back(const Tensor& symbols, const Tensor& scale, int64_t numel, int64_t size,
                   int64_t least, int64_t seed) {
  const RotateChunks chunks = rotate_back_args(symbols, scale, numel, size, least);
  Tensor out = pooled_empty(numel, ScalarType::Float);
  const uint8_t* const c = symbols.const_data_ptr<uint8_t>();
  const float* const s = scale.const_data_ptr<float>();
  fill_chunks(chunks, seed, out.mutable_data_ptr<float>(),
              [&](int64_t chunk, int64_t n, Rotation& rotation, float* x) {
                back(c + chunks.start(chunk) / 8, s[chunk], chunk, n, rotation, x);
              });
  return out;
}

std::tuple<Tensor, Tensor> rotate_fit(const Tensor& values, const Tensor& symbols,
                                      const Tensor& scale, int64_t size, int64_t least,
                                      int64_t seed) {
  check_dense(values, ScalarType::Float, "rotate_fit: values");
  const RotateChunks chunks = rotate_back_args(symbols, scale, values.numel(), size, least);
  Tensor fitted = empty(chunks.count, ScalarType::Float, values);
  Tensor estimate = pooled_empty(chunks.n, ScalarType::Float);
  const float* const value = values.const_data_ptr<float>();
  const uint8_t* const c = symbols.const_data_ptr<uint8_t>();
  const float* const s = scale.const_data_ptr<float>();
  float* const fits = fitted.mutable_data_ptr<float>();
  fill_chunks(chunks, seed, estimate.mutable_data_ptr<float>(),
              [&](int64_t chunk, int64_t n, Rotation& rotation, float* x) {
                const int64_t start = chunks.start(chunk), count = chunks.values_of(chunk);
                std::vector<float> padded(static_cast<size_t>(count < n ? n : 0));
                if (count < n) copy_padded(value + start, count, n, padded.data());
                const float* const whole = count < n ? padded.data() : value + start;
                back(c + start / 8, s[chunk], chunk, n, rotation, x);
                const double agreement = GCEXT_TABLE(rotate_table).dot(whole, x, n);
                fits[chunk] = rotate_fitted(s[chunk], agreement, n);
                back(c + start / 8, fits[chunk], chunk, n, rotation, x);
              });
  return {fitted, estimate};
}

}  // namespace

GCEXT_OPERATOR(CPU, rotate,
               "(Tensor values, int size, int least, int seed) -> (Tensor rotated, Tensor norm)")
GCEXT_OPERATOR(CPU, rotate_scale,
               "(Tensor rotated, Tensor symbols, Tensor norm, Tensor bad, Tensor(a!) info, int "
               "size) -> Tensor")
GCEXT_OPERATOR(CPU, rotate_fit,
               "(Tensor values, Tensor symbols, Tensor scale, int size, int least, int seed) -> "
               "(Tensor scale, Tensor estimate)")
GCEXT_OPERATOR(CPU, rotate_back,
               "(Tensor symbols, Tensor scale, int numel, int size, int least, int seed) -> Tensor")

}  // namespace gcext
