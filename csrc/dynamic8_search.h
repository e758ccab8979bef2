// For bodies of one instruction set: the codes c of the dynamic 8-bit type (codes.h) that are
// nearest to numbers. The rank of a magnitude is |c - 127|.
#pragma once

#include <cmath>
#include <cstdint>

#include "codes.h"
#include "common/lanes.h"
#include "encode_codes.h"

namespace gcext::GCEXT_ISA {
namespace {

// The greatest float32 that is not above the midpoint of magnitudes t and t + 1.
inline float dynamic_middle(int t) {
  const double exact = (static_cast<double>(Dynamic8::magnitude(t)) +
                        static_cast<double>(Dynamic8::magnitude(t + 1))) /
                       2;
  const float near = static_cast<float>(exact);
  return static_cast<double>(near) > exact ? float_of(bits_of(near) - 1) : near;
}

// The magnitudes [0, 1] cut where the top 15 bits of a float32 change: less than one midpoint of
// two T lies in each piece.
struct Pieces {
  static constexpr int kShift = 17;                       // 6 bits of mantissa
  static constexpr int kFirst = (127 - 22) << 6;          // from 2^-22: below all midpoints
  static constexpr int kCount = (127 << 6) + 1 - kFirst;  // up to 1
  int32_t below[kCount];  // midpoints below the piece: the rank of T at its start
  float above[kCount];    // a number above this, within the piece, has one T more

  Pieces() {
    int rank = 0;
    for (int piece = 0; piece < kCount; ++piece) {
      const float start = float_of(static_cast<uint32_t>(kFirst + piece) << kShift);
      while (rank < 128 && dynamic_middle(rank) < start) ++rank;
      below[piece] = rank;
      above[piece] = rank < 128 ? dynamic_middle(rank) : 2.0f;
    }
  }

  static int32_t of(float y) {
    const int32_t from = static_cast<int32_t>(bits_of(y) >> kShift) - kFirst;
    return from > 0 ? from : 0;
  }
  int32_t rank(float y, int32_t piece) const {
    return below[piece] + static_cast<int32_t>(y > above[piece]);
  }
};

#if defined(__AVX512F__)
// The same in float32, kVector magnitudes at a time. T is linear between powers of ten: within the
// stretch between two of these a rank is the whole part of factor * y + start. An octave, the
// numbers of one exponent, has at most one end of a stretch.
struct Stretches {
  static constexpr int kOctaves = 24;  // 2^-23 .. 2^0
  static constexpr int kFirst = 127 - (kOctaves - 1);
  // More than float32 errs by: of a rank, and of an end by its size.
  static constexpr float kDoubt = 0x1p-13f, kDoubtOfEnd = 0x1p-20f;
  // By octave: the end, or one beyond the octave; and the stretch that ends there.
  alignas(64) float end[32];
  alignas(64) int32_t before[32];
  // By stretch, of ranks 0 | 1 | 2, 3 | 4 .. 7 | .. | 64 .. 127 | 128.
  alignas(64) float factor[16], start[16], last[16];

  Stretches() {
    for (int s = 0; s < 16; ++s) {
      const int i = s - 1;
      const bool linear = i >= 0 && i < 7;
      const double step = linear ? 0.9 * std::pow(10.0, i - 6) / (1 << i) : 0;
      factor[s] = linear ? static_cast<float>(1 / step) : 0.0f;
      start[s] = linear ? static_cast<float>((1 << i) * (1 - 1 / 9.0)) : i < 0 ? 0.5f : 128.5f;
      last[s] = linear ? static_cast<float>((2 << i) - 1) : i < 0 ? 0.0f : 128.0f;
    }
    for (int octave = 0, s = 0; octave < 32; ++octave) {
      const float top = float_of(static_cast<uint32_t>(kFirst + octave + 1) << 23);
      before[octave] = s;
      end[octave] = 2.0f;
      if (s >= 8) continue;
      const float here = dynamic_middle((1 << s) - 1);
      if (here >= top) continue;
      end[octave] = here;
      ++s;
    }
  }
};

// False where one of them is in doubt; y errs by less than 2^-22 of itself.
inline bool nearest_ranks(const Stretches& table, __m512 y, __m512i* rank) {
  const auto floats = [](const float* at) { return _mm512_load_ps(at); };
  const __m512i octave =
      _mm512_max_epi32(_mm512_sub_epi32(_mm512_srli_epi32(_mm512_castps_si512(y), 23),
                                        _mm512_set1_epi32(Stretches::kFirst)),
                       _mm512_setzero_si512());
  const __m512 end = _mm512_permutex2var_ps(floats(table.end), octave, floats(table.end + 16)),
               beyond = _mm512_sub_ps(y, end);
  const __m512i before = _mm512_permutex2var_epi32(_mm512_load_si512(table.before), octave,
                                                   _mm512_load_si512(table.before + 16)),
                own = _mm512_mask_sub_epi32(before, _mm512_cmp_ps_mask(y, end, _CMP_GT_OQ), before,
                                            _mm512_set1_epi32(-1));
  const __m512 r = _mm512_fmadd_ps(y, _mm512_permutexvar_ps(own, floats(table.factor)),
                                   _mm512_permutexvar_ps(own, floats(table.start)));
  *rank = _mm512_cvttps_epi32(_mm512_min_ps(r, _mm512_permutexvar_ps(own, floats(table.last))));
  const __mmask16 near_end = _mm512_cmp_ps_mask(
      _mm512_abs_ps(beyond), end * _mm512_set1_ps(Stretches::kDoubtOfEnd), _CMP_NGE_UQ);
  return !doubtful(r, Stretches::kDoubt) && __builtin_expect(near_end == 0, 1);
}
#endif

inline uint8_t dynamic_code(const Pieces& pieces, float x, double inverse) {
  const float y = dynamic_ratio(x, inverse);
  const int32_t rank = pieces.rank(y, Pieces::of(y)),
                least = rank < kDynamic8Zero ? rank : kDynamic8Zero;
  return static_cast<uint8_t>(kDynamic8Zero + (x < 0 ? -least : rank));
}

#if defined(__AVX512F__)
// Returns how many elements are done.
int64_t dynamic_vectors(const Pieces& pieces, const float* acc, int64_t n, double inverse,
                        Ahead ahead, uint8_t* code) {
  static const Stretches stretches;
  if (!(inverse > 0x1p-100 && inverse < 0x1p100)) return 0;
  const __m512 factor = _mm512_set1_ps(static_cast<float>(inverse));
  const __m512i zero = _mm512_set1_epi32(kDynamic8Zero);
  int64_t i = 0;
  for (; i + kVector <= n; i += kVector) {
    ahead.ask(i);
    const __m512 x = _mm512_loadu_ps(acc + i);
    __m512i rank;
    if (!nearest_ranks(stretches, _mm512_abs_ps(x) * factor, &rank)) {
      for (int j = 0; j < kVector; ++j) code[i + j] = dynamic_code(pieces, acc[i + j], inverse);
      continue;
    }
    const __m512i own = _mm512_mask_sub_epi32(_mm512_add_epi32(zero, rank),
                                              _mm512_movepi32_mask(_mm512_castps_si512(x)), zero,
                                              _mm512_min_epi32(rank, zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(code + i), _mm512_cvtepi32_epi8(own));
  }
  return i;
}
#else
constexpr int64_t kLookups = 512;  // elements looked up at a time

// In loops of one kind each: of look-ups, without a branch, and of vectors.
int64_t dynamic_vectors(const Pieces& p, const float* acc, int64_t n, double inverse, Ahead ahead,
                        uint8_t* code) {
  for (int64_t at = 0; at < n; at += kLookups) {
    const int64_t m = n - at < kLookups ? n - at : kLookups;
    const float* x = acc + at;
    float y[kLookups];
    int32_t piece[kLookups], rank[kLookups];
    for (int64_t i = 0; i < m; i += kVector) ahead.ask(at + i);
    for (int64_t i = 0; i < m; ++i) y[i] = dynamic_ratio(x[i], inverse);
    for (int64_t i = 0; i < m; ++i) piece[i] = Pieces::of(y[i]);
    for (int64_t i = 0; i < m; ++i) rank[i] = p.rank(y[i], piece[i]);
    for (int64_t i = 0; i < m; ++i) {
      const int32_t least = rank[i] < kDynamic8Zero ? rank[i] : kDynamic8Zero;
      code[at + i] = static_cast<uint8_t>(kDynamic8Zero + (x[i] < 0 ? -least : rank[i]));
    }
  }
  return n;
}
#endif

}  // namespace
}  // namespace gcext::GCEXT_ISA
