// For bodies of one instruction set: vectors of mixed widths, which compilers do not make well of
// plain loops.
#pragma once

#include <cstring>

#include "scalar.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gcext::GCEXT_ISA {
namespace {

// Bytes of the processor's vectors: of wider ones compilers make moves.
#if defined(__AVX512F__)
constexpr int kNative = 64;
#elif defined(__AVX2__)
constexpr int kNative = 32;
#else
constexpr int kNative = 16;
#endif

constexpr int kVector = 16;         // elements at a time
constexpr int64_t kLookedUp = 128;  // elements that are worth a table of what is sent of them

// Sums of elements, side by side: LaneSums, and what adds to them
//
//   the products of floats and small integers, which are exact, and these integers' squares
//
// and whether any of some numbers is in doubt, below: as many numbers at a time as a vector has.
#if defined(__AVX512F__)
struct LaneSums {
  __m512d dot = _mm512_setzero_pd(), squares = _mm512_setzero_pd();
};

inline __m256i upper(__m512i x) { return _mm512_extracti64x4_epi64(x, 1); }
inline __m512i joined(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
inline __m512d widened(__m256i floats) { return _mm512_cvtps_pd(_mm256_castsi256_ps(floats)); }

inline void add_products(__m512 x, __m512i level, LaneSums* sums) {
  const auto eight = [&](__m256i floats, __m256i levels) {
    const __m512d own = _mm512_cvtepi32_pd(levels);
    sums->dot = _mm512_fmadd_pd(widened(floats), own, sums->dot);
    sums->squares = _mm512_fmadd_pd(own, own, sums->squares);
  };
  const __m512i bits = _mm512_castps_si512(x);
  eight(_mm512_castsi512_si256(bits), _mm512_castsi512_si256(level));
  eight(upper(bits), upper(level));
}

inline bool doubtful(__m512 r, float doubt) {
  const __m512 off = _mm512_abs_ps(_mm512_reduce_ps(r, _MM_FROUND_TO_NEAREST_INT));
  return __builtin_expect(_mm512_cmp_ps_mask(off, _mm512_set1_ps(doubt), _CMP_NGE_UQ) != 0, 0);
}
#elif defined(__AVX2__)
struct Lanes {
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
};
struct LaneSums {
  Lanes dot, squares;
};

inline void add_products(__m256 x, __m256i level, LaneSums* sums) {
  const auto four = [](__m128 floats, __m128i levels, __m256d* dot, __m256d* squares) {
    const __m256d own = _mm256_cvtepi32_pd(levels);
    *dot += _mm256_cvtps_pd(floats) * own;
    *squares += own * own;
  };
  four(_mm256_castps256_ps128(x), _mm256_castsi256_si128(level), &sums->dot.low,
       &sums->squares.low);
  four(_mm256_extractf128_ps(x, 1), _mm256_extracti128_si256(level, 1), &sums->dot.high,
       &sums->squares.high);
}

inline bool doubtful(__m256 r, float doubt) {
  const __m256 off = _mm256_andnot_ps(
      _mm256_set1_ps(-0.0f), r - _mm256_round_ps(r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  const __m256 near = _mm256_cmp_ps(off, _mm256_set1_ps(doubt), _CMP_NGE_UQ);
  return __builtin_expect(_mm256_movemask_ps(near) != 0, 0);
}
#else
struct LaneSums {
  double dot[kLanes] = {}, squares[kLanes] = {};
};

inline void add_products(const double (&x)[kVector], const double (&level)[kVector],
                         LaneSums* sums) {
  for (int i = 0; i < kVector; ++i) {
    sums->dot[i % kLanes] += x[i] * level[i];
    sums->squares[i % kLanes] += level[i] * level[i];
  }
}
#endif

// Of one of LaneSums.
template <class Sums>
double added(const Sums& sums) {
  double lane[kLanes];
  static_assert(sizeof sums == sizeof lane, "kLanes doubles");
  std::memcpy(lane, &sums, sizeof lane);
  return add_lanes(lane);
}

#if defined(__AVX2__)
inline __m256i load_eight(const char* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}
#endif

// Integers that are held as int8_t or int16_t: keep_levels, of numbers in their range, and
// wide_levels.
#if defined(__AVX512F__)
inline void keep_levels(__m512i own, int8_t* level) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(level), _mm512_cvtepi32_epi8(own));
}
inline void keep_levels(__m512i own, int16_t* level) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(level), _mm512_cvtepi32_epi16(own));
}

inline __m512i wide_levels(const int8_t* level) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(level)));
}
inline __m512i wide_levels(const int16_t* level) {
  return _mm512_cvtepi16_epi32(load_eight(reinterpret_cast<const char*>(level)));
}
#elif defined(__AVX2__)
inline void keep_levels(__m256i own, int16_t* level) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(level),
                   _mm_packs_epi32(_mm256_castsi256_si128(own), _mm256_extracti128_si256(own, 1)));
}
inline void keep_levels(__m256i own, int8_t* level) {
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(own), _mm256_extracti128_si256(own, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(level), _mm_packs_epi16(words, words));
}

inline __m256i wide_levels(const int8_t* level) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(level)));
}
inline __m256i wide_levels(const int16_t* level) {
  return _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(level)));
}
#endif

// Float64 formulas of which only the whole part counts are found in float32, but where that lies
// within a `doubt` of a whole number (doubtful): there the formula itself decides.
//
// The doubt of x * factor + u <= steps + 1, u of 32 bits: more than float32 errs by, rounding each
// number and each operation. Where the factor is out of its range, or steps are many, all is in
// doubt.
inline float doubt_of(double factor, int32_t steps) {
  const bool within = steps < 1024 && factor > 0x1p-100 && factor < 0x1p100;
  return within ? static_cast<float>(steps + 2) * 0x1p-22f : 1.0f;
}

}  // namespace
}  // namespace gcext::GCEXT_ISA
