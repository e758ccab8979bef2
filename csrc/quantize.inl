// Bodies of quantize.h for one instruction set: plain loops that the compiler turns into vectors,
// but where widths are mixed, values looked up, or signs and levels packed.
#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/bypass.h"
#include "common/draws.h"
#include "common/front.h"
#include "common/lanes.h"
#include "common/widen.h"
#include "quantize.h"

namespace gcext::GCEXT_ISA {
namespace {

constexpr int kWindow = 17;  // 24-bit mantissas moved by up to 17 bits: 4096 of them fit a double

// acc becomes the n sums; returns their largest key. Keys are not negative as int32, which the
// baseline can compare.
template <class Sum>
int32_t add_up(int64_t n, float* __restrict acc, const Sum& sum) {
  int32_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float x = sum(i);
    const int32_t key = static_cast<int32_t>(key_of(x));
    acc[i] = x;
    top = key > top ? key : top;
  }
  return top;
}

// With b = 1 its product is left out: the same bits, and no slow path on denormals.
template <class Memory>
int32_t add_memory(const float* tensor, float b, int64_t n, float* acc, const Memory& memory) {
  if (b == 1.0f) return add_up(n, acc, [=](int64_t i) { return tensor[i] + memory(i); });
  return add_up(n, acc, [=](int64_t i) { return tensor[i] + b * memory(i); });
}

uint32_t accumulate(const HostSource& s, int64_t begin, int64_t n, float* acc) {
  if (s.half.at != nullptr) {
    uint32_t top = 0;
    for_widened(s, begin, n, [&](int64_t at, int64_t m, const HostSource& here) {
      top = std::max(top, accumulate(here, at, m, acc + (at - begin)));
    });
    return top;
  }
  const float* const tensor = s.tensor + (begin - s.first);
  if (s.memory == nullptr)
    return static_cast<uint32_t>(add_up(n, acc, [=](int64_t i) { return tensor[i]; }));
  const float* const memory = s.memory + begin;
  if (s.sent == nullptr)
    return static_cast<uint32_t>(
        add_memory(tensor, s.b, n, acc, [=](int64_t i) { return memory[i]; }));
  // Elements that are all before the cut of what was sent, and those behind it.
  const int64_t ties = before_cut(s.sent, begin, n);
  Taken taken = taken_of(s.sent);
  const auto rest = [&](int64_t from, int64_t until) {
    return add_memory(tensor + from, s.b, until - from, acc + from,
                      [=](int64_t i) { return rest_of(memory[from + i], taken); });
  };
  const int32_t first = rest(0, ties);
  ++taken.low;
  return static_cast<uint32_t>(std::max(first, rest(ties, n)));
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
void tally_signs(const float* acc, int64_t n, uint32_t top, Ahead ahead, uint8_t* bits,
                 uint64_t* bins) {
  pack_signs(acc, n, bits);
  const uint32_t high = top >> 23 != 0 ? top >> 23 : 1;
  const uint32_t low = high > kWindow ? high - kWindow : 1;
  const int32_t least = low > 1 ? static_cast<int32_t>(low << 23) : 0;
  // In the compiler's vectors, of the width that the processor has: of wider ones it makes moves.
  typedef int32_t Keys __attribute__((vector_size(kNative), may_alias));
  typedef float Half __attribute__((vector_size(kNative / 2), may_alias));
  typedef double Sums __attribute__((vector_size(kNative)));
  constexpr int kKeys = kNative / sizeof(int32_t);
  Keys far_keys = {};
  Sums sums[2] = {};
  int64_t at = 0;
  for (; at + kKeys <= n; at += kKeys) {
    if (at % kVector == 0) ahead.ask(at);
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
  for (int j = 0; j < kKeys / 2; ++j) whole += sums[0][j] + sums[1][j];
  for (int j = 0; j < kKeys; ++j) far |= far_keys[j];
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

struct LevelScale {
  double norm, per_norm;

  LevelScale(float of, int32_t steps) : norm(of), per_norm(static_cast<double>(steps) / of) {}

  int32_t level(float x, uint32_t u) const {
    const double magnitude = float_of(key_of(x));
    return level_of(magnitude < norm ? magnitude : norm, per_norm, u);
  }
};

// draw_levels: the levels of kVector elements, added to the sums; at: what they draw, unaligned.
// Returns how many are zero. Products are exact, 24 by 15 bits, and so are the sums of squares.
#if defined(__AVX512F__)
inline __m512i exact_levels(__m512i key, const char* at, const LevelScale& scale) {
  const auto eight = [&](__m256i keys, const char* from) {
    return _mm512_cvttpd_epi32(_mm512_min_pd(widened(keys), _mm512_set1_pd(scale.norm)) *
                                   _mm512_set1_pd(scale.per_norm) +
                               _mm512_cvtepu32_pd(load_eight(from)) * _mm512_set1_pd(0x1p-32));
  };
  const __m256i low = eight(_mm512_castsi512_si256(key), at);
  return joined(low, eight(upper(key), at + sizeof low));
}

template <class Level>
inline int64_t draw_levels(const float* acc, const char* at, const LevelScale& scale, float doubt,
                           Level* level, LaneSums* sums) {
  const __m512 x = _mm512_loadu_ps(acc), magnitude = _mm512_abs_ps(x),
               clipped = _mm512_min_ps(magnitude, _mm512_set1_ps(static_cast<float>(scale.norm))),
               u = _mm512_cvtepu32_ps(_mm512_loadu_si512(at)) * _mm512_set1_ps(0x1p-32f),
               r = _mm512_fmadd_ps(clipped, _mm512_set1_ps(static_cast<float>(scale.per_norm)), u);
  __m512i drawn = _mm512_cvttps_epi32(r);
  if (doubtful(r, doubt)) drawn = exact_levels(_mm512_castps_si512(magnitude), at, scale);
  add_products(magnitude, drawn, sums);
  keep_levels(_mm512_mask_sub_epi32(drawn, _mm512_movepi32_mask(_mm512_castps_si512(x)),
                                    _mm512_setzero_si512(), drawn),
              level);
  return _mm_popcnt_u32(_mm512_testn_epi32_mask(drawn, drawn));
}
#elif defined(__AVX2__)
inline __m256i exact_levels(const float* acc, const char* at, const LevelScale& scale) {
  alignas(32) uint32_t u[8];
  alignas(32) int32_t drawn[8];
  std::memcpy(u, at, sizeof u);
  for (int i = 0; i < 8; ++i) drawn[i] = scale.level(acc[i], u[i]);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(drawn));
}

template <class Level>
inline int64_t draw_levels(const float* acc, const char* at, const LevelScale& scale, float doubt,
                           Level* level, LaneSums* sums) {
  int64_t zeros = 0;
  for (int half = 0; half < 2; ++half, acc += 8, at += sizeof(__m256i), level += 8) {
    const __m256 x = _mm256_loadu_ps(acc), magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x),
                 clipped = _mm256_min_ps(magnitude, _mm256_set1_ps(static_cast<float>(scale.norm)));
    // Of 31 bits, which is near enough.
    const __m256 u = _mm256_cvtepi32_ps(_mm256_srli_epi32(load_eight(at), 1)) *
                     _mm256_set1_ps(0x1p-31f),
                 r = clipped * _mm256_set1_ps(static_cast<float>(scale.per_norm)) + u;
    __m256i drawn = _mm256_cvttps_epi32(r);
    if (doubtful(r, doubt)) drawn = exact_levels(acc, at, scale);
    add_products(magnitude, drawn, sums);
    const __m256i minus = _mm256_srai_epi32(_mm256_castps_si256(x), 31),
                  own = _mm256_sub_epi32(_mm256_xor_si256(drawn, minus), minus),
                  none = _mm256_cmpeq_epi32(drawn, _mm256_setzero_si256());
    keep_levels(own, level);
    zeros += _mm_popcnt_u32(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(none))));
  }
  return zeros;
}
#else
template <class Level>
inline int64_t draw_levels(const float* acc, const char* at, const LevelScale& scale, float,
                           Level* level, LaneSums* sums) {
  uint32_t u[kVector];
  std::memcpy(u, at, sizeof u);
  int32_t drawn[kVector], zeros = 0;
  double own[kVector], magnitude[kVector];
  for (int i = 0; i < kVector; ++i) drawn[i] = scale.level(acc[i], u[i]);
  for (int i = 0; i < kVector; ++i) {
    own[i] = drawn[i];
    magnitude[i] = static_cast<double>(float_of(key_of(acc[i])));
    level[i] = static_cast<Level>(acc[i] < 0 ? -drawn[i] : drawn[i]);
    zeros += drawn[i] == 0;
  }
  add_products(magnitude, own, sums);
  return zeros;
}
#endif

template <class Level>
int64_t levels(const float* acc, int64_t n, float norm, const LevelRule& rule, int64_t index,
               Ahead ahead, Level* level, FitSums* fit) {
  *fit = {0, 0};
  if (!(norm > 0)) {
    std::memset(level, 0, static_cast<size_t>(n) * sizeof *level);
    return 0;
  }
  const LevelScale scale(norm, rule.steps);
  const float doubt = doubt_of(scale.per_norm, rule.steps);
  LaneSums sums;
  int64_t zeros = 0;
  DrawnRun run;
  for (int64_t at = 0; at < n; at += kBatch) {
    run.draw(rule.key, index + at);
    const int64_t m = n - at < kBatch ? n - at : kBatch;
    int64_t i = 0;
    for (; i + kVector <= m; i += kVector) {
      ahead.ask(at + i);
      zeros += draw_levels(acc + at + i, run.at(i), scale, doubt, level + at + i, &sums);
    }
    if (i == m) continue;
    // Behind the end zeros, of level 0: u is below 1.
    const int64_t left = m - i;
    float rest[kVector] = {};
    char u[kVector * sizeof(uint32_t)] = {};
    Level drawn[kVector];
    std::memcpy(rest, acc + at + i, static_cast<size_t>(left) * sizeof *acc);
    std::memcpy(u, run.at(i), static_cast<size_t>(left) * sizeof(uint32_t));
    zeros += draw_levels(rest, u, scale, doubt, drawn, &sums) - (kVector - left);
    std::memcpy(level + at + i, drawn, static_cast<size_t>(left) * sizeof *level);
  }
  *fit = {added(sums.dot), added(sums.squares)};
  return n - zeros;
}

#if defined(__AVX512F__)
// Where levels are few what was sent is looked up. Returns how many elements are done.
template <class Level>
int64_t subtract_few(float* acc, int64_t n, float norm, int32_t steps, const Level* level) {
  if (steps >= kVector || n < kLookedUp) return 0;
  alignas(64) float sent[2 * kVector];  // of levels from -kVector on
  for (int j = 0; j < 2 * kVector; ++j) sent[j] = sent_of(norm, j - kVector, steps);
  const __m512 low = _mm512_load_ps(sent), high = _mm512_load_ps(sent + kVector);
  int64_t i = 0;
  for (; i + kVector <= n; i += kVector) {
    const __m512i at = _mm512_xor_si512(wide_levels(level + i), _mm512_set1_epi32(kVector));
    _mm512_storeu_ps(
        acc + i, _mm512_sub_ps(_mm512_loadu_ps(acc + i), _mm512_permutex2var_ps(low, at, high)));
  }
  return i;
}
#else
template <class Level>
int64_t subtract_few(float*, int64_t, float, int32_t, const Level*) {
  return 0;
}
#endif

// One step needs no product: norm * 1 / 1 is the norm.
template <class Level>
void subtract_levels(float* acc, int64_t n, float norm, int32_t steps, const Level* level) {
  int64_t i = subtract_few(acc, n, norm, steps, level);
  if (steps == 1) {
    for (; i < n; ++i) acc[i] -= level[i] == 0 ? 0.0f : level[i] < 0 ? -norm : norm;
  } else if (steps % 2 == 0) {
    for (; i < n; ++i) acc[i] -= sent_of(norm, level[i], steps);
  } else {
    const double step = static_cast<double>(norm) / steps;
    for (; i < n; ++i) acc[i] -= sent_by(step, level[i]);
  }
}

// emit_vector: the places and values of kEmitted levels, side by side; what is written behind them
// is not for keeping. Returns how many are not zero.
#if defined(__AVX512F__)
constexpr int kEmitted = 16;

template <class Level>
inline int64_t emit_vector(const Level* drawn, int32_t base, int32_t* at, int16_t* level) {
  const __m512i wide = wide_levels(drawn),
                places = _mm512_add_epi32(
                    _mm512_set1_epi32(base),
                    _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  const __mmask16 kept = _mm512_test_epi32_mask(wide, wide);
  _mm512_storeu_si512(at, _mm512_maskz_compress_epi32(kept, places));
  keep_levels(_mm512_maskz_compress_epi32(kept, wide), level);
  return _mm_popcnt_u32(kept);
}
#elif defined(__AVX2__)
constexpr int kEmitted = 8;

template <class Level>
inline int64_t emit_vector(const Level* drawn, int32_t base, int32_t* at, int16_t* level) {
  const __m256i wide = wide_levels(drawn),
                places = _mm256_add_epi32(_mm256_set1_epi32(base),
                                          _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
                none = _mm256_cmpeq_epi32(wide, _mm256_setzero_si256());
  const unsigned kept =
      ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(none))) & 0xffu;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), to_front(places, kept));
  keep_levels(to_front(wide, kept), level);
  return _mm_popcnt_u32(kept);
}
#endif

template <class Level>
int64_t emit_levels(const Level* drawn, int64_t n, int32_t begin, int32_t* at, int16_t* level) {
  int64_t i = 0, count = 0;
#if defined(__AVX2__)
  for (; i + kEmitted <= n; i += kEmitted)
    count += emit_vector(drawn + i, begin + static_cast<int32_t>(i), at + count, level + count);
#endif
  for (; i < n; ++i) {
    at[count] = begin + static_cast<int32_t>(i);
    level[count] = drawn[i];
    count += drawn[i] != 0;
  }
  return count;
}

}  // namespace

const QuantizeTable quantize_table = {
    accumulate,
    tally_signs,
    subtract_signs,
    squares,
    {levels<int8_t>, subtract_levels<int8_t>, emit_levels<int8_t>},
    {levels<int16_t>, subtract_levels<int16_t>, emit_levels<int16_t>},
    bypass};

}  // namespace gcext::GCEXT_ISA
