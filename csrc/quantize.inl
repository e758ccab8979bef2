// Bodies of quantize.h for one instruction set. Plain loops that the compiler turns into vectors;
// only packing signs is beyond it.
#include <cmath>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "quantize.h"

namespace gcext::GCEXT_ISA {
namespace {

constexpr int64_t kBatch = 64;  // draws made at a time, in loops of one kind each
constexpr int kWindow = 17;  // 24-bit mantissas moved by up to 17 bits: 4096 of them fit a double

// Elements that are all before the cut of what was sent, or all behind it.
void add_rest(const float* tensor, const float* memory, float b, const Taken& taken, int64_t n,
              float* acc) {
  if (b == 1.0f) {
    for (int64_t i = 0; i < n; ++i) acc[i] = tensor[i] + rest_of(memory[i], taken);
  } else {
    for (int64_t i = 0; i < n; ++i) acc[i] = tensor[i] + b * rest_of(memory[i], taken);
  }
}

uint32_t accumulate(const Source& s, int64_t begin, int64_t n, float* acc) {
  const float* tensor = s.tensor + begin;
  if (s.sent != nullptr) {
    Taken taken = taken_of(s.sent);
    const int64_t ties = before_cut(s.sent, begin, n);
    const float* const memory = s.memory + begin;
    add_rest(tensor, memory, s.b, taken, ties, acc);
    ++taken.low;
    add_rest(tensor + ties, memory + ties, s.b, taken, n - ties, acc + ties);
  } else if (s.memory == nullptr) {
    std::memcpy(acc, tensor, static_cast<size_t>(n) * sizeof(float));
  } else if (s.b == 1.0f) {  // same bits, and no slow path on denormals
    for (int64_t i = 0; i < n; ++i) acc[i] = tensor[i] + s.memory[begin + i];
  } else {
    for (int64_t i = 0; i < n; ++i) acc[i] = tensor[i] + s.b * s.memory[begin + i];
  }
  int32_t top = 0;  // keys are not negative as int32, which the baseline can compare
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = static_cast<int32_t>(key_of(acc[i]));
    top = key > top ? key : top;
  }
  return static_cast<uint32_t>(top);
}

void pack_signs(const float* acc, int64_t n, uint8_t* bits) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    const __mmask16 mask =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(acc + i), _mm512_setzero_ps(), _CMP_LT_OQ);
    std::memcpy(bits + i / 8, &mask, sizeof mask);
  }
#elif defined(__AVX2__)
  for (; i + 8 <= n; i += 8) {
    bits[i / 8] = static_cast<uint8_t>(_mm256_movemask_ps(
        _mm256_cmp_ps(_mm256_loadu_ps(acc + i), _mm256_setzero_ps(), _CMP_LT_OQ)));
  }
#endif
  for (; i < n; i += 8) {
    unsigned byte = 0;
    for (int64_t j = 0; j < 8 && i + j < n; ++j) byte |= (acc[i + j] < 0 ? 1u : 0u) << j;
    bits[i / 8] = static_cast<uint8_t>(byte);
  }
}

// Magnitudes within 2^17 of the largest are added as doubles, without a rounding, so in any order;
// what is smaller goes to its bin one by one.
void tally_signs(const float* acc, int64_t n, uint32_t top, uint8_t* bits, uint64_t* bins) {
  pack_signs(acc, n, bits);
  const uint32_t high = top >> 23 != 0 ? top >> 23 : 1;
  const uint32_t low = high > kWindow ? high - kWindow : 1;
  const int32_t least = low > 1 ? static_cast<int32_t>(low << 23) : 0;
  // In the compiler's own vectors, sixteen elements at a time.
  typedef int32_t Keys __attribute__((vector_size(64), may_alias));
  typedef float Half __attribute__((vector_size(32), may_alias));
  typedef double Sums __attribute__((vector_size(64)));
  Keys far_keys = {};
  Sums sums[2] = {};
  int64_t at = 0;
  for (; at + 16 <= n; at += 16) {
    Keys key;
    std::memcpy(&key, acc + at, sizeof key);
    key &= 0x7fffffff;
    const Keys near = key & (Keys)(key >= least);
    far_keys |= key ^ near;
    Half half[2];
    std::memcpy(half, &near, sizeof half);
    for (int h = 0; h < 2; ++h) sums[h] += __builtin_convertvector(half[h], Sums);
  }
  double whole = 0;
  int32_t far = 0;
  for (int j = 0; j < 8; ++j) whole += sums[0][j] + sums[1][j];
  for (int j = 0; j < 16; ++j) far |= far_keys[j];
  for (; at < n; ++at) {
    const int32_t key = static_cast<int32_t>(key_of(acc[at]));
    if (key >= least) {
      whole += static_cast<double>(std::fabs(acc[at]));
    } else {
      far |= key;
    }
  }
  // In units of the lowest exponent's last bit.
  const uint64_t sum = static_cast<uint64_t>(std::ldexp(whole, 150 - static_cast<int>(low)));
  bins[low] += sum & ((uint64_t{1} << (high - low)) - 1);
  bins[high] += sum >> (high - low);
  for (int64_t i = 0; i < n && far != 0; ++i) {
    const uint32_t key = key_of(acc[i]);
    if (key >> 23 < low) bins[bin_of(key)] += mantissa_of(key);
  }
}

void subtract_signs(float* acc, int64_t n, float scale) {
  for (int64_t i = 0; i < n; ++i) acc[i] -= acc[i] < 0 ? -scale : scale;
}

double squares(const float* acc, int64_t n) {
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const double x = acc[i + j];
      lane[j] += x * x;
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const double x = acc[i + j];
    lane[j] += x * x;
  }
  return add_lanes(lane);
}

int64_t levels(const float* acc, int64_t n, float norm, const LevelRule& rule, int64_t index,
               int16_t* level) {
  if (!(norm > 0)) {
    std::memset(level, 0, static_cast<size_t>(n) * sizeof *level);
    return 0;
  }
  const double per_norm = static_cast<double>(rule.steps) / norm;
  const int32_t most = static_cast<int32_t>(bits_of(norm));
  int64_t zeros = 0;
  for (int64_t at = 0; at < n; at += kBatch) {
    const int64_t m = n - at < kBatch ? n - at : kBatch;
    const float* x = acc + at;
    const uint64_t first = static_cast<uint64_t>(index + at);
    double u[kBatch];
    float within[kBatch];
    int32_t drawn[kBatch];
    for (int64_t i = 0; i < m; ++i) u[i] = uniform(rule.key, first + static_cast<uint64_t>(i));
    for (int64_t i = 0; i < m; ++i) {
      const int32_t key = static_cast<int32_t>(key_of(x[i]));
      within[i] =
          float_of(static_cast<uint32_t>(key < most ? key : most));  // keys order as magnitudes do
    }
    for (int64_t i = 0; i < m; ++i) drawn[i] = level_of(within[i], rule.steps, per_norm, u[i]);
    for (int64_t i = 0; i < m; ++i) {
      level[at + i] = static_cast<int16_t>(x[i] < 0 ? -drawn[i] : drawn[i]);
      zeros += drawn[i] == 0;
    }
  }
  return n - zeros;
}

// Products are exact: 24 by 15 bits.
FitSums fit(const float* acc, int64_t n, const int16_t* level) {
  double lane[kLanes] = {};
  int64_t i = 0, squares = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lane[j] += static_cast<double>(acc[i + j]) * level[i + j];
  }
  for (int j = 0; i + j < n; ++j) lane[j] += static_cast<double>(acc[i + j]) * level[i + j];
  for (i = 0; i < n; ++i) squares += static_cast<int32_t>(level[i]) * level[i];
  return {add_lanes(lane), static_cast<double>(squares)};
}

// One step needs no division: norm * 1 / 1 is the norm.
void subtract_levels(float* acc, int64_t n, float norm, int32_t steps, const int16_t* level) {
  if (steps > 1) {
    for (int64_t i = 0; i < n; ++i) acc[i] -= sent_of(norm, level[i], steps);
    return;
  }
  for (int64_t i = 0; i < n; ++i) acc[i] -= level[i] == 0 ? 0.0f : level[i] < 0 ? -norm : norm;
}

void bypass(const float* from, int64_t n, float* to) {
  int64_t i = 0;
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(to) % 64 == 0) {
    for (; i + 16 <= n; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
    _mm_sfence();
  }
#elif defined(__AVX2__)
  if (reinterpret_cast<uintptr_t>(to) % 32 == 0) {
    for (; i + 8 <= n; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
    _mm_sfence();
  }
#endif
  std::memcpy(to + i, from + i, static_cast<size_t>(n - i) * sizeof(float));
}

}  // namespace

const QuantizeTable quantize_table = {accumulate, tally_signs, subtract_signs,  squares,
                                      levels,     fit,         subtract_levels, bypass};

}  // namespace gcext::GCEXT_ISA
