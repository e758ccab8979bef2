// Bodies of adacomp.h for one instruction set.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "adacomp.h"

namespace gcext::GCEXT_ISA {
namespace {

uint32_t largest(const float* sum, int64_t n) {
  int32_t top = 0;  // keys are below 2^31, and compare as signed on every instruction set
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = static_cast<int32_t>(key_of(sum[i]));
    top = key > top ? key : top;
  }
  return static_cast<uint32_t>(top);
}

// Of at most 64 elements.
uint64_t choose_word(const float* sum, const float* tensor, int64_t n, uint32_t gmax) {
  uint64_t word = 0;
#if defined(__AVX512F__)
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i least = _mm512_set1_epi32(static_cast<int>(gmax));
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 in = n - i < 16 ? static_cast<__mmask16>((1u << (n - i)) - 1) : 0xffff;
    const __m512 s = _mm512_maskz_loadu_ps(in, sum + i), t = _mm512_maskz_loadu_ps(in, tensor + i);
    const __m512i h = _mm512_and_si512(_mm512_castps_si512(_mm512_add_ps(s, t)), magnitude);
    const __mmask16 kept = _mm512_test_epi32_mask(_mm512_castps_si512(s), magnitude);
    word |= static_cast<uint64_t>(_mm512_mask_cmpge_epu32_mask(kept, h, least)) << i;
  }
#else
  int64_t i = 0;
#if defined(__AVX2__)
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const __m256i below = _mm256_set1_epi32(static_cast<int>(gmax) - 1);
  for (; i + 8 <= n; i += 8) {
    const __m256 s = _mm256_loadu_ps(sum + i), t = _mm256_loadu_ps(tensor + i);
    const __m256i key = _mm256_and_si256(_mm256_castps_si256(s), magnitude);
    const __m256i h = _mm256_and_si256(_mm256_castps_si256(_mm256_add_ps(s, t)), magnitude);
    const __m256i kept = _mm256_and_si256(_mm256_cmpgt_epi32(key, _mm256_setzero_si256()),
                                          _mm256_cmpgt_epi32(h, below));
    word |=
        static_cast<uint64_t>(static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(kept))))
        << i;
  }
#endif
  for (; i < n; ++i) word |= uint64_t{adacomp_chooses(sum[i], tensor[i], gmax)} << i;
#endif
  return word;
}

int64_t choose(const float* sum, const float* tensor, int64_t n, uint32_t gmax, uint64_t* chosen) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t word = choose_word(sum + i, tensor + i, n - i < 64 ? n - i : 64, gmax);
    chosen[i / 64] = word;
    count += __builtin_popcountll(word);
  }
  return count;
}

}  // namespace

const AdaCompTable adacomp_table = {largest, choose};

}  // namespace gcext::GCEXT_ISA
