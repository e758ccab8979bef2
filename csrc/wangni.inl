// Bodies of wangni.h for one instruction set.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "wangni.h"

namespace gcext::GCEXT_ISA {
namespace {

// Of at most 64 levels.
uint64_t mark_word(const int8_t* level, int64_t n) {
  uint64_t word = 0;
  int64_t i = 0;
#if defined(__AVX2__)
  for (; i + 32 <= n; i += 32) {
    const __m256i none = _mm256_cmpeq_epi8(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(level + i)), _mm256_setzero_si256());
    word |= static_cast<uint64_t>(~static_cast<unsigned>(_mm256_movemask_epi8(none))) << i;
  }
#endif
  for (; i < n; ++i) word |= uint64_t{level[i] != 0} << i;
  return word;
}

int64_t mark(const int8_t* level, int64_t n, const uint64_t* sure, uint64_t* words) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 64) {
    const uint64_t word = mark_word(level + i, n - i < 64 ? n - i : 64) & ~sure[i / 64];
    words[i / 64] = word;
    count += __builtin_popcountll(word);
  }
  return count;
}

}  // namespace

const WangniTable wangni_table = {mark};

}  // namespace gcext::GCEXT_ISA
