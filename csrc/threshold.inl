// Bodies of threshold.h for one instruction set.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/front.h"
#include "threshold.h"

namespace gcext::GCEXT_ISA {
namespace {

// Of at most 64 elements. Keys are compared as signed: they are below 2^31.
uint64_t mark_word(const float* acc, int64_t n, int32_t limit) {
  uint64_t word = 0;
#if defined(__AVX512F__)
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), least = _mm512_set1_epi32(limit);
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 in = n - i < 16 ? static_cast<__mmask16>((1u << (n - i)) - 1) : 0xffff;
    const __m512i x = _mm512_maskz_loadu_epi32(in, acc + i);  // limit > 0: no zero is marked
    word |= static_cast<uint64_t>(_mm512_cmpge_epi32_mask(_mm512_and_si512(x, magnitude), least))
            << i;
  }
#else
  int64_t i = 0;
#if defined(__AVX2__)
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), below = _mm256_set1_epi32(limit - 1);
  for (; i + 8 <= n; i += 8) {
    const __m256i x = _mm256_castps_si256(_mm256_loadu_ps(acc + i));
    const __m256i past = _mm256_cmpgt_epi32(_mm256_and_si256(x, magnitude), below);
    const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(past));
    word |= static_cast<uint64_t>(static_cast<unsigned>(mask)) << i;
  }
#endif
  for (; i < n; ++i) word |= uint64_t{static_cast<int32_t>(key_of(acc[i])) >= limit} << i;
#endif
  return word;
}

int64_t mark(const float* acc, int64_t n, uint32_t limit, uint64_t* words) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t word = mark_word(acc + i, n - i < 64 ? n - i : 64, static_cast<int32_t>(limit));
    words[i / 64] = word;
    count += __builtin_popcountll(word);
  }
  return count;
}

// take_vector: of as many elements as `in` has bits. Where nothing is to be left, acc stays.
#if defined(__AVX512F__)
constexpr int kVector = 16;

inline int64_t take_vector(float* acc, __mmask16 in, const ThresholdRule& rule, bool subtracted,
                           int32_t first, int32_t* at, float* value) {
  const __m512i x = _mm512_maskz_loadu_epi32(in, acc);
  const __m512i key = _mm512_and_si512(x, _mm512_set1_epi32(0x7fffffff));
  const __mmask16 own =
      _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32(static_cast<int>(rule.limit)));
  const __m512i scaled = _mm512_or_si512(_mm512_set1_epi32(static_cast<int>(rule.scale)),
                                         _mm512_andnot_si512(_mm512_set1_epi32(0x7fffffff), x));
  const __m512i sent = rule.scale == 0 ? x : scaled;
  const __m512i place =
      _mm512_add_epi32(_mm512_set1_epi32(first),
                       _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  _mm512_storeu_si512(at, _mm512_maskz_compress_epi32(own, place));
  _mm512_storeu_si512(value, _mm512_maskz_compress_epi32(own, sent));
  if (subtracted)
    _mm512_mask_storeu_ps(acc, own,
                          _mm512_sub_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(sent)));
  return _mm_popcnt_u32(own);
}
#elif defined(__AVX2__)
constexpr int kVector = 8;

inline int64_t take_vector(float* acc, const ThresholdRule& rule, bool subtracted, int32_t first,
                           int32_t* at, float* value) {
  const __m256 x = _mm256_loadu_ps(acc);
  const __m256i sign = _mm256_set1_epi32(static_cast<int>(0x80000000u));
  const __m256i key = _mm256_andnot_si256(sign, _mm256_castps_si256(x));
  const __m256i past = _mm256_cmpgt_epi32(key, _mm256_set1_epi32(static_cast<int>(rule.limit) - 1));
  const unsigned own = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(past)));
  const __m256i scaled = _mm256_or_si256(_mm256_set1_epi32(static_cast<int>(rule.scale)),
                                         _mm256_and_si256(sign, _mm256_castps_si256(x)));
  const __m256i sent = rule.scale == 0 ? _mm256_castps_si256(x) : scaled;
  const __m256i place =
      _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), to_front(place, own));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(value), to_front(sent, own));
  if (subtracted)
    _mm256_storeu_ps(acc, _mm256_sub_ps(x, _mm256_castsi256_ps(_mm256_and_si256(sent, past))));
  return _mm_popcnt_u32(own);
}
#endif

int64_t take(float* acc, int64_t n, const ThresholdRule& rule, bool subtracted, int32_t* at,
             float* value) {
  int64_t count = 0, i = 0;
#if defined(__AVX512F__)
  for (; i < n; i += kVector) {
    const __mmask16 in =
        n - i < kVector ? static_cast<__mmask16>((1u << (n - i)) - 1) : static_cast<__mmask16>(-1);
    count += take_vector(acc + i, in, rule, subtracted, static_cast<int32_t>(i), at + count,
                         value + count);
  }
#elif defined(__AVX2__)
  for (; i + kVector <= n; i += kVector)
    count +=
        take_vector(acc + i, rule, subtracted, static_cast<int32_t>(i), at + count, value + count);
#endif
  for (; i < n; ++i) {
    const float x = acc[i], sent = rule.sent(x);
    const bool own = rule.sends(x);
    at[count] = static_cast<int32_t>(i);
    value[count] = sent;
    count += own;
    if (own && subtracted) acc[i] = x - sent;
  }
  return count;
}

}  // namespace

const ThresholdTable threshold_table = {take, mark};

}  // namespace gcext::GCEXT_ISA
