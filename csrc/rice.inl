// rice: the bodies, compiled once per instruction set. See rice.h for the formulas.
#include <cstdint>
#include <cstring>

#include "rice.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gcext::GCEXT_ISA {
namespace {

bool gaps(const int32_t* index, int64_t n, int64_t first, uint32_t* gap) {
  const int64_t head = index[0] - first;
  if (head < 0) return false;
  gap[0] = static_cast<uint32_t>(head);
  uint32_t fell = 0;  // the top bit is set once a gap is negative
  for (int64_t i = 1; i < n; ++i) {
    const uint32_t low = static_cast<uint32_t>(index[i - 1]),
                   high = static_cast<uint32_t>(index[i]);
    gap[i] = high - low - 1;
    fell |= gap[i] | high;
  }
  return fell >> 31 == 0;
}

uint64_t half_sum(const uint32_t* gap, int64_t n, int b) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t q = gap[i] >> b;
    sum += static_cast<uint64_t>((q >> 1) + (q & 1));
  }
  return sum;
}

void split(const uint32_t* gap, int64_t n, int b, uint32_t* remainder, uint64_t* unary) {
  const uint32_t mask = (uint32_t{1} << b) - 1;
  for (int64_t i = 0; i < n; ++i) remainder[i] = gap[i] & mask;
  // The word being filled stays in a register; it is left only when the next one lies beyond it.
  uint64_t word = 0;
  uint32_t at = 0, place = 0;
  for (int64_t i = 0; i < n; ++i, ++place) {
    place += gap[i] >> b;
    if (place >> 6 != at) {
      unary[at] = word;
      word = 0;
      at = place >> 6;
    }
    word |= uint64_t{1} << (place & 63);
  }
  unary[at] = word;
}

int64_t ones(const uint64_t* word, int64_t words, uint32_t* place) {
  const uint32_t* first_place = place;
#if defined(__AVX512F__)
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t w = 0; w < words; ++w) {
    // Compressed in a register and stored whole: a compress to memory is microcoded on Zen 4.
    for (int part = 0; part < 4; ++part) {
      const __mmask16 mask = static_cast<__mmask16>(word[w] >> (16 * part));
      const __m512i at =
          _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(64 * w) + 16 * part));
      _mm512_storeu_si512(place, _mm512_maskz_compress_epi32(mask, at));
      place += __builtin_popcount(mask);
    }
  }
#else
  for (int64_t w = 0; w < words; ++w) {
    const uint32_t first = static_cast<uint32_t>(64 * w);
    const int count = __builtin_popcountll(word[w]);
    uint64_t rest = word[w];
    // Groups of eight without a branch in between; what is written past `count` is overwritten.
    for (int done = 0; done < count; done += 8) {
      for (int j = 0; j < 8; ++j) {
        // On an exhausted word any value will do; the or keeps ctz defined.
        place[done + j] = first + static_cast<uint32_t>(__builtin_ctzll(rest | uint64_t{1} << 63));
        rest &= rest - 1;
      }
    }
    place += count;
  }
#endif
  return place - first_place;
}

void join(const uint32_t* place, const uint32_t* remainder, int64_t n, int b, uint32_t* offset,
          uint32_t* halves, uint32_t* tops) {
  const int top = b > 0 ? b - 1 : 31;  // b = 0: every remainder is 0, and so is its bit 31
  uint32_t half = 0, tall = 0, sum = 0, before = 0;
  int64_t i = 0;
#if defined(__AVX512F__)
  // Sixteen lanes: an inclusive scan of the remainders in four shifted additions, then the carry.
  const __m512i zero = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
  const __m512i last = _mm512_set1_epi32(15), sixteen = _mm512_set1_epi32(16);
  __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i carry = zero, zeros_before = zero, half_sum = zero, top_sum = zero;
  const __m128i shift = _mm_cvtsi32_si128(b), top_shift = _mm_cvtsi32_si128(top);
  for (; i + 16 <= n; i += 16) {
    const __m512i r = _mm512_loadu_si512(remainder + i);
    const __m512i zeros = _mm512_sub_epi32(_mm512_loadu_si512(place + i), lane);  // q_0 + .. + q_i
    __m512i scan = r;
    scan = _mm512_add_epi32(scan, _mm512_alignr_epi32(scan, zero, 15));
    scan = _mm512_add_epi32(scan, _mm512_alignr_epi32(scan, zero, 14));
    scan = _mm512_add_epi32(scan, _mm512_alignr_epi32(scan, zero, 12));
    scan = _mm512_add_epi32(scan, _mm512_alignr_epi32(scan, zero, 8));
    scan = _mm512_add_epi32(scan, carry);
    carry = _mm512_permutexvar_epi32(last, scan);
    const __m512i high = _mm512_add_epi32(_mm512_sll_epi32(zeros, shift), lane);
    _mm512_storeu_si512(offset + i, _mm512_add_epi32(scan, high));
    const __m512i q = _mm512_sub_epi32(zeros, _mm512_alignr_epi32(zeros, zeros_before, 15));
    zeros_before = zeros;
    half_sum = _mm512_add_epi32(half_sum, _mm512_srli_epi32(_mm512_add_epi32(q, one), 1));
    top_sum = _mm512_add_epi32(top_sum, _mm512_srl_epi32(r, top_shift));
    lane = _mm512_add_epi32(lane, sixteen);
  }
  half = static_cast<uint32_t>(_mm512_reduce_add_epi32(half_sum));
  tall = static_cast<uint32_t>(_mm512_reduce_add_epi32(top_sum));
  sum = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm512_castsi512_si128(carry)));
#elif defined(__AVX2__)
  // Eight lanes: scans of both halves in two shifted additions, then the low half's sum, the carry.
  const __m256i one = _mm256_set1_epi32(1), eight = _mm256_set1_epi32(8);
  const __m256i last = _mm256_set1_epi32(7), rotate = _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6);
  const __m256i third = _mm256_setr_epi32(3, 3, 3, 3, 3, 3, 3, 3);
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i carry = _mm256_setzero_si256(), rotated_before = carry, half_sum = carry, top_sum = carry;
  const __m128i shift = _mm_cvtsi32_si128(b), top_shift = _mm_cvtsi32_si128(top);
  for (; i + 8 <= n; i += 8) {
    const __m256i r = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(remainder + i));
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place + i));
    const __m256i zeros = _mm256_sub_epi32(at, lane);  // q_0 + .. + q_i
    __m256i scan = _mm256_add_epi32(r, _mm256_slli_si256(r, 4));
    scan = _mm256_add_epi32(scan, _mm256_slli_si256(scan, 8));
    const __m256i low = _mm256_permutevar8x32_epi32(scan, third);
    scan = _mm256_add_epi32(scan, _mm256_blend_epi32(_mm256_setzero_si256(), low, 0xf0));
    scan = _mm256_add_epi32(scan, carry);
    carry = _mm256_permutevar8x32_epi32(scan, last);
    const __m256i high = _mm256_add_epi32(_mm256_sll_epi32(zeros, shift), lane);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(offset + i), _mm256_add_epi32(scan, high));
    const __m256i rotated = _mm256_permutevar8x32_epi32(zeros, rotate);
    const __m256i q = _mm256_sub_epi32(zeros, _mm256_blend_epi32(rotated, rotated_before, 1));
    rotated_before = rotated;
    half_sum = _mm256_add_epi32(half_sum, _mm256_srli_epi32(_mm256_add_epi32(q, one), 1));
    top_sum = _mm256_add_epi32(top_sum, _mm256_srl_epi32(r, top_shift));
    lane = _mm256_add_epi32(lane, eight);
  }
  uint32_t lanes[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), half_sum);
  for (const uint32_t x : lanes) half += x;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), top_sum);
  for (const uint32_t x : lanes) tall += x;
  sum = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(carry)));
#endif
  if (i > 0) before = place[i - 1] - static_cast<uint32_t>(i - 1);
  for (; i < n; ++i) {
    const uint32_t at = static_cast<uint32_t>(i), zeros = place[i] - at;
    sum += remainder[i];
    offset[i] = at + (zeros << b) + sum;
    half += (zeros - before + 1) >> 1;
    tall += remainder[i] >> top;
    before = zeros;
  }
  *halves = half;
  *tops = tall;
}

}  // namespace

const RiceTable rice_table = {gaps, half_sum, split, ones, join};

}  // namespace gcext::GCEXT_ISA
