// Bodies of select_chunks.h for one instruction set; without intrinsics plain loops, which the
// compiler vectorises.
#include <cstring>

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

// 64 floats, of which `to` is on a multiple of 64 bytes if `past`.
inline void store_block(const float* from, float* to, bool past) {
#if defined(__AVX512F__)
  for (int j = 0; j < 64; j += 16) {
    const __m512 x = _mm512_loadu_ps(from + j);
    past ? _mm512_stream_ps(to + j, x) : _mm512_storeu_ps(to + j, x);
  }
#elif defined(__AVX2__)
  for (int j = 0; j < 64; j += 8) {
    const __m256 x = _mm256_loadu_ps(from + j);
    past ? _mm256_stream_ps(to + j, x) : _mm256_storeu_ps(to + j, x);
  }
#else
  static_cast<void>(past);
  std::memcpy(to, from, 64 * sizeof(float));
#endif
}

void store(Outgoing o) {
  if (o.to == nullptr) return;
  int64_t i = 0;
  for (; i + 64 <= o.n; i += 64) store_block(o.acc + i, o.to + i, o.past);
  std::memcpy(o.to + i, o.acc + i, static_cast<size_t>(o.n - i) * sizeof(float));
#if defined(__AVX2__)
  if (o.past) _mm_sfence();  // other threads update what was stored past the cache
#endif
}

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
      __builtin_prefetch(s.memory + i + j + kFetch, 0, 2);
    }
    __builtin_prefetch(s.tensor + i + j + kFetch, 0, 2);
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
      __builtin_prefetch(s.memory + i + j + kFetch, 0, 2);
    }
    __builtin_prefetch(s.tensor + i + j + kFetch, 0, 2);
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
                     uint32_t* highest, Outgoing o) {
  int64_t count = 0, i = 0;
  int32_t top = static_cast<int32_t>(*highest);
  for (; i + 64 <= n; i += 64) {
    uint64_t word = collect_word<kMemory, kScaled>(s, i, low, acc, &top);
    if (o.to != nullptr && i + 64 <= o.n) store_block(o.acc + i, o.to + i, o.past);
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
  const int64_t stored = (n < o.n ? n : o.n) & ~int64_t{63};
  if (o.to != nullptr) store({o.acc + stored, o.to + stored, o.n - stored, o.past});
  return count;
}

int64_t collect(const Source& s, int64_t n, uint32_t low, float* acc, uint32_t* start,
                uint32_t* highest, Outgoing o) {
  const bool scaled = s.a != 1.0f || (s.memory != nullptr && s.b != 1.0f);
  const auto body = s.memory == nullptr
                        ? (scaled ? collect_with<false, true> : collect_with<false, false>)
                        : (scaled ? collect_with<true, true> : collect_with<true, false>);
  return body(s, n, low, acc, start, highest, o);
}

// Whole vectors, and so no remainder: see kChunkPad.
inline int64_t padded(int64_t n) { return (n + kChunkPad - 1) / kChunkPad * kChunkPad; }

int64_t count_from(const uint32_t* bits, int64_t n, int32_t low) {
  int32_t count[kChunkPad] = {};
  for (int64_t i = 0; i < n; i += kChunkPad) {
    for (int j = 0; j < kChunkPad; ++j) count[j] += signed_key(bits[i + j]) >= low;
  }
  int64_t sum = 0;
  for (const int32_t each : count) sum += each;
  return sum;
}

// Bit by bit from the highest in which two keys may differ; a trial that leaves exactly k ends it
// early, among a hundred keys after some eight.
uint32_t kth(const uint32_t* bits, int64_t n, int64_t k, uint32_t low) {
  int32_t highest[kChunkPad] = {}, lowest[kChunkPad];
  n = padded(n);
  for (int64_t i = 0; i < n; i += kChunkPad) {
    for (int j = 0; j < kChunkPad; ++j) {
      const int32_t key = signed_key(bits[i + j]);
      highest[j] = key > highest[j] ? key : highest[j];
    }
  }
  int32_t most = 0;
  for (const int32_t each : highest) most = each > most ? each : most;
  if (k == 1 || most == static_cast<int32_t>(low)) return static_cast<uint32_t>(most);
  int bit = 31 - __builtin_clz(static_cast<uint32_t>(most) ^ low);
  int32_t key = most >> (bit + 1) << (bit + 1);
  for (; bit >= 0; --bit) {
    const int32_t trial = key | int32_t{1} << bit;
    const int64_t count = count_from(bits, n, trial);
    if (count < k) continue;
    key = trial;
    if (count > k) continue;
    for (int32_t& each : lowest) each = INT32_MAX;
    for (int64_t i = 0; i < n; i += kChunkPad) {
      for (int j = 0; j < kChunkPad; ++j) {
        const int32_t own = signed_key(bits[i + j]);
        lowest[j] = own >= key && own < lowest[j] ? own : lowest[j];
      }
    }
    int32_t least = INT32_MAX;
    for (const int32_t each : lowest) least = each < least ? each : least;
    return static_cast<uint32_t>(least);
  }
  return static_cast<uint32_t>(key);
}

int64_t greater(const uint32_t* bits, int64_t n, uint32_t key) {
  return count_from(bits, padded(n), static_cast<int32_t>(key) + 1);
}

}  // namespace

const ChunkTable select_chunks_table = {collect, store, kth, greater};

}  // namespace gcext::GCEXT_ISA
