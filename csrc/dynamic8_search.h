// For bodies of one instruction set: the nearest value of the dynamic 8-bit type (codes.h), as
// |c - 127|, of magnitudes.
#pragma once

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
  static constexpr int kOctaves = 24;                                // 2^-23 .. 2^0
  static constexpr int kFirst = 127 - (kOctaves - 1);                // the exponent of the first
  static constexpr float kDoubt = 0x1p-13f, kDoubtOfEnd = 0x1p-20f;  // float32 errs by less
  alignas(64) float end[32];                                         // of the octave, or beyond it
  alignas(64) int32_t before[32];                                    // the stretch that ends there
  alignas(64) float factor[16], start[16], last[16];

  Stretches() {
    for (int s = 0; s < 16; ++s) {  // ranks 0 | 1 | 2, 3 | 4 .. 7 | .. | 64 .. 127 | 128
      const int i = s - 1;
      const bool linear = i >= 0 && i < 7;
      const double step = linear ? 0.9 * pow(10, i - 6) / (1 << i) : 0;
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

}  // namespace
}  // namespace gcext::GCEXT_ISA
