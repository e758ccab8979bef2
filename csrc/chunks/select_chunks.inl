// Bodies of select_chunks.h for one instruction set; without intrinsics plain loops, which the
// compiler vectorises.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "select_chunks.h"

namespace gcext::GCEXT_ISA {
namespace {

// Keys are below 2^31, so they compare as signed, which every instruction set has.
inline int32_t signed_key(uint32_t bits) { return static_cast<int32_t>(key_of(bits)); }

// Elements ahead that are fetched, so that memory is read while a chunk is being searched.
constexpr int64_t kFetch = 4096;

// Scaled or not: without the multiplications by 1 there is no slow path on denormals.
template <bool kMemory, bool kScaled>
inline float accumulate(const Source& s, int64_t i) {
  const float t = kScaled ? s.a * s.tensor[i] : s.tensor[i];
  if (!kMemory) return t;
  return t + (kScaled ? s.b * s.memory[i] : s.memory[i]);
}

// 64 elements from i on: the sums to acc, and a bit for each with key >= low.
template <bool kMemory, bool kScaled>
inline uint64_t collect_word(const Source& s, int64_t i, uint32_t low, float* acc, int32_t* top) {
  uint64_t word = 0;
#if defined(__AVX512F__)
  __m512i most = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int j = 0; j < 64; j += 16) {
    __m512 x = _mm512_loadu_ps(s.tensor + i + j);
    if (kScaled) x = _mm512_mul_ps(_mm512_set1_ps(s.a), x);
    if (kMemory) {
      __m512 m = _mm512_loadu_ps(s.memory + i + j);
      if (kScaled) m = _mm512_mul_ps(_mm512_set1_ps(s.b), m);
      x = _mm512_add_ps(x, m);
      _mm_prefetch(reinterpret_cast<const char*>(s.memory + i + j + kFetch), _MM_HINT_T1);
    }
    _mm_prefetch(reinterpret_cast<const char*>(s.tensor + i + j + kFetch), _MM_HINT_T1);
    _mm512_storeu_ps(acc + i + j, x);
    const __m512i key = _mm512_and_si512(_mm512_castps_si512(x), magnitude);
    most = _mm512_max_epi32(most, key);
    const __mmask16 mask = _mm512_cmpge_epi32_mask(key, _mm512_set1_epi32(static_cast<int>(low)));
    word |= static_cast<uint64_t>(mask) << j;
  }
  const int32_t own = _mm512_reduce_max_epi32(most);
#elif defined(__AVX2__)
  __m256i most = _mm256_setzero_si256();
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const __m256i below = _mm256_set1_epi32(static_cast<int>(low) - 1);
  for (int j = 0; j < 64; j += 8) {
    __m256 x = _mm256_loadu_ps(s.tensor + i + j);
    if (kScaled) x = _mm256_mul_ps(_mm256_set1_ps(s.a), x);
    if (kMemory) {
      __m256 m = _mm256_loadu_ps(s.memory + i + j);
      if (kScaled) m = _mm256_mul_ps(_mm256_set1_ps(s.b), m);
      x = _mm256_add_ps(x, m);
      _mm_prefetch(reinterpret_cast<const char*>(s.memory + i + j + kFetch), _MM_HINT_T1);
    }
    _mm_prefetch(reinterpret_cast<const char*>(s.tensor + i + j + kFetch), _MM_HINT_T1);
    _mm256_storeu_ps(acc + i + j, x);
    const __m256i key = _mm256_and_si256(_mm256_castps_si256(x), magnitude);
    most = _mm256_max_epi32(most, key);
    const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(key, below)));
    word |= static_cast<uint64_t>(static_cast<unsigned>(mask)) << j;
  }
  alignas(32) int32_t lane[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), most);
  int32_t own = 0;
  for (const int32_t each : lane) own = each > own ? each : own;
#else
  int32_t own = 0;
  for (int j = 0; j < 64; ++j) acc[i + j] = accumulate<kMemory, kScaled>(s, i + j);
  for (int first = 0; first < 64; first += 16) {  // most sixteens have none
    int32_t most = 0;
    for (int j = first; j < first + 16; ++j) {
      const int32_t key = signed_key(bits_of(acc[i + j]));
      most = key > most ? key : most;
    }
    own = most > own ? most : own;
    if (most < static_cast<int32_t>(low)) continue;
    for (int j = first; j < first + 16; ++j)
      word |= uint64_t{signed_key(bits_of(acc[i + j])) >= static_cast<int32_t>(low)} << j;
  }
#endif
  *top = own > *top ? own : *top;
  return word;
}

template <bool kMemory, bool kScaled>
int64_t collect_with(const Source& s, int64_t n, uint32_t low, float* acc, uint32_t* start,
                     uint32_t* highest) {
  int64_t count = 0, i = 0;
  int32_t top = static_cast<int32_t>(*highest);
  for (; i + 64 <= n; i += 64) {
    uint64_t word = collect_word<kMemory, kScaled>(s, i, low, acc, &top);
    const int there = __builtin_popcountll(word);
    // Mostly one or two: four at a time, so that their number is no branch that is hard to predict.
    for (int done = 0; done < there; done += 4) {
      for (int j = 0; j < 4; ++j) {
        start[count + done + j] = static_cast<uint32_t>(i) +
                                  static_cast<uint32_t>(__builtin_ctzll(word | uint64_t{1} << 63));
        word &= word - 1;
      }
    }
    count += there;
  }
  for (; i < n; ++i) {
    acc[i] = accumulate<kMemory, kScaled>(s, i);
    const int32_t key = signed_key(bits_of(acc[i]));
    top = key > top ? key : top;
    start[count] = static_cast<uint32_t>(i);
    count += key >= static_cast<int32_t>(low);
  }
  *highest = static_cast<uint32_t>(top);
  return count;
}

int64_t collect(const Source& s, int64_t n, uint32_t low, float* acc, uint32_t* start,
                uint32_t* highest) {
  const bool scaled = s.a != 1.0f || (s.memory != nullptr && s.b != 1.0f);
  const auto body = s.memory == nullptr
                        ? (scaled ? collect_with<false, true> : collect_with<false, false>)
                        : (scaled ? collect_with<true, true> : collect_with<true, false>);
  return body(s, n, low, acc, start, highest);
}

uint32_t count_from(const uint32_t* bits, int64_t n, int32_t low) {
  uint32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += signed_key(bits[i]) >= low;
  return count;
}

// Bit by bit from the highest in which two keys differ; a trial that leaves exactly k ends it
// early, among a hundred keys after some eight.
uint32_t kth(const uint32_t* bits, int64_t n, int64_t k) {
  int32_t most = 0, least = INT32_MAX;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = signed_key(bits[i]);
    most = key > most ? key : most;
    least = key < least ? key : least;
  }
  if (k == 1 || most == least) return static_cast<uint32_t>(most);
  if (k == n) return static_cast<uint32_t>(least);
  int bit = 31 - __builtin_clz(static_cast<uint32_t>(most ^ least));
  int32_t key = most >> (bit + 1) << (bit + 1);
  for (; bit >= 0; --bit) {
    const int32_t trial = key | int32_t{1} << bit;
    const int64_t count = count_from(bits, n, trial);
    if (count < k) continue;
    key = trial;
    if (count == k) {
      least = INT32_MAX;
      for (int64_t i = 0; i < n; ++i) {
        const int32_t own = signed_key(bits[i]);
        least = own >= key && own < least ? own : least;
      }
      return static_cast<uint32_t>(least);
    }
  }
  return static_cast<uint32_t>(key);
}

int64_t greater(const uint32_t* bits, int64_t n, uint32_t key) {
  return count_from(bits, n, static_cast<int32_t>(key) + 1);
}

}  // namespace

const ChunkTable select_chunks_table = {collect, kth, greater};

}  // namespace gcext::GCEXT_ISA
