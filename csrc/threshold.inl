// Bodies of threshold.h for one instruction set.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

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

}  // namespace

const ThresholdTable threshold_table = {mark};

}  // namespace gcext::GCEXT_ISA
