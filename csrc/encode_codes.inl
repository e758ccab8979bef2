// Bodies of encode_codes.h for one instruction set: plain loops that the compiler turns into
// vectors, but where widths are mixed or values looked up.
#include <cmath>
#include <cstring>

#include "common/draws.h"
#include "common/lanes.h"
#include "dynamic8_search.h"
#include "dynamic8_values.h"
#include "encode_codes.h"

namespace gcext::GCEXT_ISA {
namespace {

// How a bucket's elements are rounded.
struct GridRun {
  double factor, middle;
  int32_t steps;
};

// grid_vector: the codes of kVector elements, added to the sums; at: what they draw, unaligned.
// Products are exact, 24 by 8 bits, and so are the sums of squares.
#if defined(__AVX512F__)
template <bool kRandom>
inline __m512i exact_codes(__m512i bits, const char* at, const GridRun& g) {
  const auto eight = [&](__m256i floats, const char* from) {
    __m512d r = widened(floats) * _mm512_set1_pd(g.factor) + _mm512_set1_pd(g.middle);
    if (kRandom) r += _mm512_cvtepi32_pd(load_eight(from)) * _mm512_set1_pd(0x1p-32);
    return _mm512_cvttpd_epi32(r);
  };
  const __m256i low = eight(_mm512_castsi512_si256(bits), at);
  return joined(low, eight(upper(bits), at + sizeof low));
}

template <bool kRandom, bool kFit>
inline void grid_vector(const float* acc, const char* at, const GridRun& g, float doubt,
                        uint8_t* code, LaneSums* sums) {
  const __m512 x = _mm512_loadu_ps(acc);
  __m512 middle = _mm512_set1_ps(static_cast<float>(g.middle));
  if (kRandom)
    middle = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(at)), _mm512_set1_ps(0x1p-32f),
                             middle);
  const __m512 r = _mm512_fmadd_ps(x, _mm512_set1_ps(static_cast<float>(g.factor)), middle);
  __m512i own = _mm512_cvttps_epi32(r);
  if (doubtful(r, doubt)) own = exact_codes<kRandom>(_mm512_castps_si512(x), at, g);
  if (kFit)
    add_products(x, _mm512_sub_epi32(_mm512_add_epi32(own, own), _mm512_set1_epi32(g.steps)), sums);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(code), _mm512_cvtepi32_epi8(own));
}
#elif defined(__AVX2__)
template <bool kRandom>
inline __m256i exact_codes(const float* acc, const char* at, const GridRun& g) {
  alignas(32) int32_t v[8] = {}, own[8];
  if (kRandom) std::memcpy(v, at, sizeof v);
  for (int i = 0; i < 8; ++i)
    own[i] = static_cast<int32_t>(grid_code(acc[i], g.factor, g.middle, v[i]));
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(own));
}

template <bool kRandom, bool kFit>
inline void grid_vector(const float* acc, const char* at, const GridRun& g, float doubt,
                        uint8_t* code, LaneSums* sums) {
  for (int half = 0; half < 2; ++half, acc += 8, code += 8) {
    const __m256 x = _mm256_loadu_ps(acc);
    __m256 middle = _mm256_set1_ps(static_cast<float>(g.middle));
    if (kRandom) middle += _mm256_cvtepi32_ps(load_eight(at)) * _mm256_set1_ps(0x1p-32f);
    const __m256 r = x * _mm256_set1_ps(static_cast<float>(g.factor)) + middle;
    __m256i own = _mm256_cvttps_epi32(r);
    if (doubtful(r, doubt)) own = exact_codes<kRandom>(acc, at, g);
    if (kFit)
      add_products(x, _mm256_sub_epi32(_mm256_add_epi32(own, own), _mm256_set1_epi32(g.steps)),
                   sums);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(own), _mm256_extracti128_si256(own, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(code), _mm_packus_epi16(words, words));
    if (kRandom) at += sizeof(__m256i);
  }
}
#else
template <bool kRandom, bool kFit>
inline void grid_vector(const float* acc, const char* at, const GridRun& g, float, uint8_t* code,
                        LaneSums* sums) {
  int32_t v[kVector] = {};
  if (kRandom) std::memcpy(v, at, sizeof v);
  double x[kVector], level[kVector];
  for (int i = 0; i < kVector; ++i) {
    const uint32_t own = grid_code(acc[i], g.factor, g.middle, v[i]);
    code[i] = static_cast<uint8_t>(own);
    level[i] = 2 * static_cast<int32_t>(own) - g.steps;
    x[i] = static_cast<double>(acc[i]);
  }
  if (kFit) add_products(x, level, sums);
}
#endif

template <bool kRandom, bool kFit>
void grid_of(const float* acc, int64_t n, float top, const GridRule& rule, int64_t index,
             Ahead ahead, uint8_t* code, FitSums* fit) {
  const GridRun g{grid_factor(top, rule.width), grid_middle(rule.width), (1 << rule.width) - 1};
  const float doubt = doubt_of(g.factor, g.steps);
  LaneSums sums;
  DrawnRun run;
  int64_t behind = 0;
  for (int64_t at = 0; at < n; at += kBatch) {
    const int64_t m = n - at < kBatch ? n - at : kBatch;
    if (kRandom) run.draw(rule.key, index + at);
    int64_t i = 0;
    for (; i + kVector <= m; i += kVector) {
      ahead.ask(at + i);
      grid_vector<kRandom, kFit>(acc + at + i, kRandom ? run.at(i) : nullptr, g, doubt,
                                 code + at + i, &sums);
    }
    if (i == m) continue;
    // Behind the end zeros, of level 1: v is 0.
    const int64_t left = m - i;
    float rest[kVector] = {};
    char v[kVector * sizeof(int32_t)] = {};
    uint8_t own[kVector];
    std::memcpy(rest, acc + at + i, static_cast<size_t>(left) * sizeof *acc);
    if (kRandom) std::memcpy(v, run.at(i), static_cast<size_t>(left) * sizeof(int32_t));
    grid_vector<kRandom, kFit>(rest, v, g, doubt, own, &sums);
    std::memcpy(code + at + i, own, static_cast<size_t>(left));
    behind = kVector - left;
  }
  if (kFit) *fit = {added(sums.dot), added(sums.squares) - static_cast<double>(behind)};
}

void grid(const float* acc, int64_t n, float top, const GridRule& rule, int64_t index, Ahead ahead,
          uint8_t* code, FitSums* fit) {
  constexpr decltype(&grid_of<true, true>) kForms[2][2] = {
      {grid_of<false, false>, grid_of<false, true>}, {grid_of<true, false>, grid_of<true, true>}};
  kForms[rule.random ? 1 : 0][fit != nullptr ? 1 : 0](acc, n, top, rule, index, ahead, code, fit);
}

void grid_subtract(float* acc, int64_t n, float scale, int width, const uint8_t* code) {
  const double step = grid_step(scale, width);
  int64_t i = 0;
#if defined(__AVX512F__)
  if (1 << width <= kVector && n >= kLookedUp) {  // what was sent is looked up
    alignas(64) float sent[kVector];
    for (int j = 0; j < kVector; ++j) sent[j] = grid_value(step, static_cast<uint32_t>(j), width);
    const __m512 values = _mm512_load_ps(sent);
    for (; i + kVector <= n; i += kVector) {
      const __m512i at =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code + i)));
      _mm512_storeu_ps(acc + i,
                       _mm512_sub_ps(_mm512_loadu_ps(acc + i), _mm512_permutexvar_ps(at, values)));
    }
  }
#endif
  for (; i < n; ++i) acc[i] -= grid_value(step, code[i], width);
}

void dynamic(const float* acc, int64_t n, float scale, Ahead ahead, uint8_t* code) {
  static const Pieces pieces;
  const double inverse = 1.0 / static_cast<double>(scale);
  for (int64_t i = dynamic_vectors(pieces, acc, n, inverse, ahead, code); i < n; ++i)
    code[i] = dynamic_code(pieces, acc[i], inverse);
}

void dynamic_subtract(float* acc, int64_t n, float scale, const uint8_t* code) {
  const float* const value = kDynamic8.value;
  int64_t i = 0;
#if defined(__AVX512F__)
  const Magnitudes magnitudes;
  for (; i + kVector <= n; i += kVector) {
    const __m512i own =
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code + i)));
    const __m512 sent = magnitudes.values(own) * _mm512_set1_ps(scale);
    _mm512_storeu_ps(acc + i, _mm512_sub_ps(_mm512_loadu_ps(acc + i), sent));
  }
#endif
  for (; i < n; ++i) acc[i] -= scale * value[code[i]];
}

// The magnitudes within 2^kWindow of the largest, in units of the lowest exponent's last bit: of
// all elements, and of the negative ones. count: of these. far: whether there are smaller ones.
struct NearSides {
  uint64_t all = 0, negative = 0;
  int64_t count = 0;
  bool far = false;
};

#if defined(__AVX512F__)
// As doubles, in which sums are exact.
constexpr int kWindow = 17;  // 24-bit mantissas moved by up to 17 bits: 4096 of them fit

NearSides near_sides(const float* acc, int64_t n, uint32_t low, Ahead ahead) {
  NearSides sums;
  const __m512i least = _mm512_set1_epi32(low > 1 ? static_cast<int>(low << 23) : 0);
  __m512d all = _mm512_setzero_pd(), negative = all;
  __m512i far = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += kVector) {
    ahead.ask(i);
    const __mmask16 here = static_cast<__mmask16>(n - i < kVector ? (1u << (n - i)) - 1 : 0xffffu);
    const __m512i bits = _mm512_maskz_loadu_epi32(here, acc + i),
                  key = _mm512_and_si512(bits, _mm512_set1_epi32(INT32_MAX));
    const __mmask16 near = _mm512_cmpge_epi32_mask(key, least),
                    below = _mm512_mask_test_epi32_mask(_mm512_movepi32_mask(bits), key, key);
    const __m512i kept = _mm512_maskz_mov_epi32(near, key);
    const __m512d low_half = widened(_mm512_castsi512_si256(kept)),
                  high_half = widened(upper(kept));
    far = _mm512_or_si512(far, _mm512_xor_si512(key, kept));
    all += low_half + high_half;
    negative += _mm512_maskz_mov_pd(static_cast<__mmask8>(below), low_half) +
                _mm512_maskz_mov_pd(static_cast<__mmask8>(below >> 8), high_half);
    sums.count += _mm_popcnt_u32(below);
  }
  const auto in_units = [&](__m512d sum) {
    return static_cast<uint64_t>(
        std::ldexp(_mm512_reduce_add_pd(sum), 150 - static_cast<int>(low)));
  };
  sums.all = in_units(all);
  sums.negative = in_units(negative);
  sums.far = _mm512_test_epi32_mask(far, far) != 0;
  return sums;
}
#else
constexpr int kWindow = 28;  // 24-bit mantissas moved by up to 28 bits: 4096 of them fit

NearSides near_sides(const float* acc, int64_t n, uint32_t low, Ahead) {
  NearSides sums;
  uint32_t far = 0;
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = key_of(acc[i]);
    const uint32_t exponent = key >> 23 != 0 ? key >> 23 : 1;
    const uint32_t mantissa = mantissa_of(key);
    const bool near = static_cast<int32_t>(exponent) >= static_cast<int32_t>(low);
    const uint64_t moved = static_cast<uint64_t>(near ? mantissa : 0) << ((exponent - low) & 31);
    sums.all += moved;
    sums.negative += moved & (0 - static_cast<uint64_t>(bits_of(acc[i]) >> 31));  // of -0 it is 0
    far |= near ? 0 : mantissa;
  }
  for (int64_t i = 0; i < n; ++i) count += acc[i] < 0;
  sums.count = count;
  sums.far = far != 0;
  return sums;
}
#endif

// As tally_signs of quantize.inl, for two sums.
void tally_sides(const float* acc, int64_t n, uint32_t top, Ahead ahead, Sides* sides) {
  const uint32_t high = top >> 23 != 0 ? top >> 23 : 1;
  const uint32_t low = high > kWindow ? high - kWindow : 1;
  const NearSides near = near_sides(acc, n, low, ahead);
  const uint64_t sum[2] = {near.all - near.negative, near.negative};
  for (int side = 0; side < 2; ++side) {
    sides->bins[side][low] += sum[side] & ((uint64_t{1} << (high - low)) - 1);
    sides->bins[side][high] += sum[side] >> (high - low);
  }
  for (int64_t i = 0; i < n && near.far; ++i) {
    const uint32_t key = key_of(acc[i]);
    if (key >> 23 < low) sides->bins[acc[i] < 0 ? 1 : 0][bin_of(key)] += mantissa_of(key);
  }
  sides->count[0] += n - near.count;
  sides->count[1] += near.count;
}

void sides(const float* acc, int64_t n, uint8_t* code) {
  for (int64_t i = 0; i < n; ++i) code[i] = acc[i] < 0 ? 1 : 0;
}

void sides_subtract(float* acc, int64_t n, const float* mean) {
  const float positive = mean[0], negative = mean[1];
  for (int64_t i = 0; i < n; ++i) acc[i] -= acc[i] < 0 ? negative : positive;
}

void halves(float* acc, int64_t n, uint16_t* code) {
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512 most = _mm512_set1_ps(65504.0f), least = _mm512_set1_ps(-65504.0f);
  for (; i + kVector <= n; i += kVector) {
    const __m512 x = _mm512_loadu_ps(acc + i);
    const __m256i near = _mm512_cvtps_ph(_mm512_max_ps(_mm512_min_ps(x, most), least),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    std::memcpy(code + i, &near, sizeof near);
    _mm512_storeu_ps(acc + i, _mm512_sub_ps(x, _mm512_cvtph_ps(near)));
  }
#elif defined(__AVX2__)
  const __m256 most = _mm256_set1_ps(65504.0f), least = _mm256_set1_ps(-65504.0f);
  for (; i + 8 <= n; i += 8) {
    const __m256 x = _mm256_loadu_ps(acc + i);
    const __m128i near =
        _mm256_cvtps_ph(_mm256_max_ps(_mm256_min_ps(x, most), least), _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(code + i, &near, sizeof near);
    _mm256_storeu_ps(acc + i, _mm256_sub_ps(x, _mm256_cvtph_ps(near)));
  }
#endif
  for (; i < n; ++i) {
    const Half half = half_of(acc[i]);
    code[i] = static_cast<uint16_t>(half.code);
    acc[i] -= half.sent;
  }
}

void bfloats(float* acc, int64_t n, uint16_t* code) {
  for (int64_t i = 0; i < n; ++i) {
    const Half half = bfloat_of(acc[i]);
    code[i] = static_cast<uint16_t>(half.code);
    acc[i] -= half.sent;
  }
}

// Closes the gaps between 8 codes of a byte each: of bytes, of pairs, of fours.
inline uint64_t closed(uint64_t x, int width) {
#if defined(__AVX512F__)
  // Every processor with AVX-512 does this in hardware; some with BMI2 alone do not.
  return _pext_u64(x, ((uint64_t{1} << width) - 1) * 0x0101010101010101u);
#else
  x = (x & 0x00ff00ff00ff00ffu) | (x >> 8 & 0x00ff00ff00ff00ffu) << width;
  x = (x & 0x0000ffff0000ffffu) | (x >> 16 & 0x0000ffff0000ffffu) << (2 * width);
  return (x & 0xffffffffu) | x >> 32 << (4 * width);
#endif
}

void pack(const uint8_t* code, int64_t groups, int width, uint8_t* out) {
  if (width == 8) {
    std::memcpy(out, code, static_cast<size_t>(8 * groups));
    return;
  }
  int64_t g = 0;
  // Eight bytes at a time, of which the next ones overwrite those beyond `width`.
  for (; g * width + 8 <= groups * width; ++g) {
    uint64_t x;
    std::memcpy(&x, code + 8 * g, sizeof x);
    x = closed(x, width);
    std::memcpy(out + g * width, &x, sizeof x);
  }
  for (; g < groups; ++g) {
    uint64_t x;
    std::memcpy(&x, code + 8 * g, sizeof x);
    x = closed(x, width);
    std::memcpy(out + g * width, &x, static_cast<size_t>(width));
  }
}

}  // namespace

const EncodeTable encode_table = {grid,  grid_subtract,  dynamic, dynamic_subtract, tally_sides,
                                  sides, sides_subtract, halves,  bfloats,          pack};

}  // namespace gcext::GCEXT_ISA
