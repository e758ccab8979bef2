// Bodies of select.h for one instruction set. The vector paths go 16 or 8 elements at a time;
// whatever is left, and the baseline, is plain C.
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "select.h"

namespace gcext {
namespace GCEXT_ISA {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t key_of(uint32_t bits) { return bits & 0x7fffffffu; }

// kScaled leaves the multiplications out for a = b = 1: same bits, and no slow path on denormals.
template <bool kMemory, bool kScaled>
inline float accumulate(const Source& s, int64_t i) {
  const float t = kScaled ? s.a * s.tensor[i] : s.tensor[i];
  if (!kMemory) return t;
  return t + (kScaled ? s.b * s.memory[i] : s.memory[i]);
}

template <bool kMemory, bool kScaled>
int64_t stream_plain(const Source& s, int64_t begin, int64_t n, uint32_t start, uint32_t low,
                     Candidates to, uint32_t* highest) {
  // In blocks, so that the first loop vectorises: most blocks hold no candidate.
  constexpr int64_t kBlock = 64;
  int64_t count = 0;
  uint32_t top = *highest;
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    float acc[kBlock];
    uint32_t block_top = 0;
    for (int64_t i = 0; i < m; ++i) acc[i] = accumulate<kMemory, kScaled>(s, begin + at + i);
    for (int64_t i = 0; i < m; ++i) {
      const uint32_t key = key_of(bits_of(acc[i]));
      block_top = key > block_top ? key : block_top;
    }
    if (s.out != nullptr) std::memcpy(s.out + begin + at, acc, sizeof(float) * m);
    if (block_top > top) top = block_top;
    if (block_top < low) continue;
    for (int64_t i = 0; i < m; ++i) {
      const uint32_t bits = bits_of(acc[i]);
      to.start[count] = start + static_cast<uint32_t>(at + i);
      to.bits[count] = bits;
      count += key_of(bits) >= low;
    }
  }
  *highest = top;
  return count;
}

#if defined(__AVX512F__)

template <bool kMemory, bool kScaled, bool kBypass>
int64_t stream_vector(const Source& s, int64_t begin, int64_t n, uint32_t start, uint32_t low,
                      Candidates to, uint32_t* highest) {
  const __m512 a = _mm512_set1_ps(s.a), b = _mm512_set1_ps(s.b);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff),
                lowest = _mm512_set1_epi32(static_cast<int>(low));
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i top = _mm512_set1_epi32(static_cast<int>(*highest));
  int64_t count = 0, at = 0;
  const auto load = [&](int64_t i) {
    __m512 t = _mm512_loadu_ps(s.tensor + begin + i);
    if (kScaled) t = _mm512_mul_ps(a, t);
    if (!kMemory) return t;
    __m512 m = _mm512_loadu_ps(s.memory + begin + i);
    if (kScaled) m = _mm512_mul_ps(b, m);
    return _mm512_add_ps(t, m);
  };
  const auto store = [&](int64_t i, __m512 acc) {
    if (s.out == nullptr) return;
    if (kBypass) {
      _mm512_stream_ps(s.out + begin + i, acc);
    } else {
      _mm512_storeu_ps(s.out + begin + i, acc);
    }
  };
  // Compress in a register, then store plainly: memory-destination compress-stores are microcoded
  // on Zen 4.
  const auto emit = [&](int64_t i, __m512 acc, __mmask16 mask) {
    const __m512i place = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(start + i)), lane);
    _mm512_storeu_si512(to.start + count, _mm512_maskz_compress_epi32(mask, place));
    _mm512_storeu_si512(to.bits + count,
                        _mm512_maskz_compress_epi32(mask, _mm512_castps_si512(acc)));
    count += __builtin_popcount(mask);
  };
  for (; at + 64 <= n; at += 64) {
    const __m512 x0 = load(at), x1 = load(at + 16), x2 = load(at + 32), x3 = load(at + 48);
    store(at, x0), store(at + 16, x1), store(at + 32, x2), store(at + 48, x3);
    const __m512i k0 = _mm512_and_si512(_mm512_castps_si512(x0), magnitude);
    const __m512i k1 = _mm512_and_si512(_mm512_castps_si512(x1), magnitude);
    const __m512i k2 = _mm512_and_si512(_mm512_castps_si512(x2), magnitude);
    const __m512i k3 = _mm512_and_si512(_mm512_castps_si512(x3), magnitude);
    top =
        _mm512_max_epu32(top, _mm512_max_epu32(_mm512_max_epu32(k0, k1), _mm512_max_epu32(k2, k3)));
    const __mmask16 m0 = _mm512_cmpge_epu32_mask(k0, lowest),
                    m1 = _mm512_cmpge_epu32_mask(k1, lowest);
    const __mmask16 m2 = _mm512_cmpge_epu32_mask(k2, lowest),
                    m3 = _mm512_cmpge_epu32_mask(k3, lowest);
    if (m0) emit(at, x0, m0);
    if (m1) emit(at + 16, x1, m1);
    if (m2) emit(at + 32, x2, m2);
    if (m3) emit(at + 48, x3, m3);
  }
  if (kBypass) _mm_sfence();  // other threads mend what was stored past the cache
  *highest = _mm512_reduce_max_epu32(top);
  Candidates rest{to.start + count, to.bits + count};
  return count + stream_plain<kMemory, kScaled>(
                     s, begin + at, n - at, start + static_cast<uint32_t>(at), low, rest, highest);
}

#elif defined(__AVX2__)

// Lane permutations that move the set lanes of a mask to the front.
struct Front {
  alignas(32) uint32_t lane[256][8];
  constexpr Front() : lane{} {
    for (int mask = 0; mask < 256; ++mask) {
      int n = 0;
      for (int i = 0; i < 8; ++i) {
        if (mask >> i & 1) lane[mask][n++] = static_cast<uint32_t>(i);
      }
      for (; n < 8; ++n) lane[mask][n] = 0;
    }
  }
};
constexpr Front front;

inline void store_front(uint32_t* to, __m256i x, int mask) {
  const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(front.lane[mask]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(x, order));
}

template <bool kMemory, bool kScaled, bool kBypass>
int64_t stream_vector(const Source& s, int64_t begin, int64_t n, uint32_t start, uint32_t low,
                      Candidates to, uint32_t* highest) {
  const __m256 a = _mm256_set1_ps(s.a), b = _mm256_set1_ps(s.b);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const __m256i below = _mm256_set1_epi32(static_cast<int>(low) - 1);  // keys are positive as int32
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256i top = _mm256_set1_epi32(static_cast<int>(*highest));
  int64_t count = 0, at = 0;
  const auto load = [&](int64_t i) {
    __m256 t = _mm256_loadu_ps(s.tensor + begin + i);
    if (kScaled) t = _mm256_mul_ps(a, t);
    if (!kMemory) return t;
    __m256 m = _mm256_loadu_ps(s.memory + begin + i);
    if (kScaled) m = _mm256_mul_ps(b, m);
    return _mm256_add_ps(t, m);
  };
  const auto store = [&](int64_t i, __m256 acc) {
    if (s.out == nullptr) return;
    if (kBypass) {
      _mm256_stream_ps(s.out + begin + i, acc);
    } else {
      _mm256_storeu_ps(s.out + begin + i, acc);
    }
  };
  const auto emit = [&](int64_t i, __m256 acc, int mask) {
    const __m256i place = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(start + i)), lane);
    store_front(to.start + count, place, mask);
    store_front(to.bits + count, _mm256_castps_si256(acc), mask);
    count += __builtin_popcount(static_cast<unsigned>(mask));
  };
  for (; at + 16 <= n; at += 16) {
    const __m256 x0 = load(at), x1 = load(at + 8);
    store(at, x0), store(at + 8, x1);
    const __m256i k0 = _mm256_and_si256(_mm256_castps_si256(x0), magnitude);
    const __m256i k1 = _mm256_and_si256(_mm256_castps_si256(x1), magnitude);
    top = _mm256_max_epi32(top, _mm256_max_epi32(k0, k1));
    const int m0 = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(k0, below)));
    const int m1 = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(k1, below)));
    if (m0) emit(at, x0, m0);
    if (m1) emit(at + 8, x1, m1);
  }
  if (kBypass) _mm_sfence();  // other threads mend what was stored past the cache
  alignas(32) uint32_t tops[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(tops), top);
  for (uint32_t t : tops) *highest = t > *highest ? t : *highest;
  Candidates rest{to.start + count, to.bits + count};
  return count + stream_plain<kMemory, kScaled>(
                     s, begin + at, n - at, start + static_cast<uint32_t>(at), low, rest, highest);
}

#else

template <bool kMemory, bool kScaled, bool kBypass>
int64_t stream_vector(const Source& s, int64_t begin, int64_t n, uint32_t start, uint32_t low,
                      Candidates to, uint32_t* highest) {
  return stream_plain<kMemory, kScaled>(s, begin, n, start, low, to, highest);
}

#endif

int64_t stream(const Source& s, int64_t begin, int64_t n, bool bypass, uint32_t start, uint32_t low,
               Candidates to, uint32_t* highest) {
  const bool scaled = s.a != 1.0f || (s.memory != nullptr && s.b != 1.0f);
  const auto pick = [&](auto plain, auto past) {
    return bypass ? past(s, begin, n, start, low, to, highest)
                  : plain(s, begin, n, start, low, to, highest);
  };
  if (s.memory == nullptr) {
    return scaled ? pick(stream_vector<false, true, false>, stream_vector<false, true, true>)
                  : pick(stream_vector<false, false, false>, stream_vector<false, false, true>);
  }
  return scaled ? pick(stream_vector<true, true, false>, stream_vector<true, true, true>)
                : pick(stream_vector<true, false, false>, stream_vector<true, false, true>);
}

int64_t narrow(const uint32_t* bits, int64_t n, uint32_t low, uint32_t high, uint32_t* keys,
               int64_t* above) {
  int64_t count = 0, greater = 0, i = 0;
#if defined(__AVX512F__)
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i lo = _mm512_set1_epi32(static_cast<int>(low)),
                hi = _mm512_set1_epi32(static_cast<int>(high));
  for (; i + 16 <= n; i += 16) {
    const __m512i key = _mm512_and_si512(_mm512_loadu_si512(bits + i), magnitude);
    const __mmask16 over = _mm512_cmpgt_epu32_mask(key, hi);
    const __mmask16 within = _mm512_mask_cmpge_epu32_mask(static_cast<__mmask16>(~over), key, lo);
    greater += __builtin_popcount(over);
    _mm512_storeu_si512(keys + count, _mm512_maskz_compress_epi32(within, key));
    count += __builtin_popcount(within);
  }
#endif
  for (; i < n; ++i) {
    const uint32_t key = key_of(bits[i]);
    greater += key > high;
    keys[count] = key;
    count += key >= low && key <= high;
  }
  *above += greater;
  return count;
}

// Sixteen keys at a time in the compiler's own vectors. What was chosen lies mostly within a few
// powers of two above the threshold, so the first kNear exponents have 32-bit sums in registers
// (2^8 mantissas fit); the others go to their bins one by one.
void tally(const uint32_t* bits, int64_t n, uint32_t key, int64_t* greater, int64_t* equal,
           uint64_t* bins) {
  typedef uint32_t Lanes __attribute__((vector_size(64), aligned(4), may_alias));
  constexpr int kNear = 4;
  constexpr int64_t kBatch = 16 * 255;
  const uint32_t first = key >> 23;
  const auto one = [&](uint32_t k) {
    *greater += k > key;
    *equal += k == key;
    if (k > key) bins[bin_of(k)] += mantissa_of(k);
  };
  int64_t at = 0;
  while (n - at >= 16) {
    const int64_t end = at + ((n - at < kBatch ? n - at : kBatch) & ~int64_t{15});
    Lanes near[kNear] = {}, over_count = {}, equal_count = {}, far = {};
    const int64_t begin = at;
    for (; at < end; at += 16) {
      Lanes k;
      std::memcpy(&k, bits + at, sizeof k);
      k &= 0x7fffffffu;
      const Lanes over = (Lanes)(k > key);
      const Lanes step = (k >> 23) - first;
      const Lanes mantissa = ((k & 0x7fffffu) | ((Lanes)(k > 0x7fffffu) & 0x800000u)) & over;
      over_count -= over;
      equal_count -= (Lanes)(k == key);
      far |= over & (Lanes)(step >= static_cast<uint32_t>(kNear));
      for (int e = 0; e < kNear; ++e)
        near[e] += mantissa & (Lanes)(step == static_cast<uint32_t>(e));
    }
    uint32_t any = 0;
    for (int lane = 0; lane < 16; ++lane) {
      *greater += over_count[lane];
      *equal += equal_count[lane];
      any |= far[lane];
      for (int e = 0; e < kNear && first + e < kBins; ++e) bins[first + e] += near[e][lane];
    }
    for (int64_t i = begin; any != 0 && i < end; ++i) {
      const uint32_t k = key_of(bits[i]);
      if (k > key && (k >> 23) - first >= static_cast<uint32_t>(kNear))
        bins[bin_of(k)] += mantissa_of(k);
    }
  }
  for (; at < n; ++at) one(key_of(bits[at]));
}

template <class Index>
int64_t emit(Candidates from, int64_t n, uint32_t low, int64_t base, bool ternary,
             uint32_t mean_bits, Index* index, float* value, float* out) {
  constexpr int64_t kAhead = 32;  // mended lines are scattered: ask for them early, and to write
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (out != nullptr && i + kAhead < n) {
      __builtin_prefetch(out + base + from.start[i + kAhead], 1);
    }
    const uint32_t bits = from.bits[i];
    if (key_of(bits) < low) continue;
    const int64_t place = base + from.start[i];
    const float sent = float_of(ternary ? mean_bits | (bits & 0x80000000u) : bits);
    index[count] = static_cast<Index>(place);
    value[count] = sent;
    if (out != nullptr) out[place] = float_of(bits) - sent;
    ++count;
  }
  return count;
}

uint32_t highest(const float* x, int64_t n) {
  uint32_t top = 0;
  int64_t i = 0;
#if defined(__AVX512F__)
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i m0 = _mm512_setzero_si512(), m1 = m0, m2 = m0, m3 = m0;
  const auto key = [&](int64_t at) {
    return _mm512_and_si512(_mm512_loadu_si512(x + at), magnitude);
  };
  for (; i + 64 <= n; i += 64) {
    m0 = _mm512_max_epu32(m0, key(i));
    m1 = _mm512_max_epu32(m1, key(i + 16));
    m2 = _mm512_max_epu32(m2, key(i + 32));
    m3 = _mm512_max_epu32(m3, key(i + 48));
  }
  top =
      _mm512_reduce_max_epu32(_mm512_max_epu32(_mm512_max_epu32(m0, m1), _mm512_max_epu32(m2, m3)));
#endif
  for (; i < n; ++i) {
    const uint32_t k = key_of(bits_of(x[i]));
    top = k > top ? k : top;
  }
  return top;
}

}  // namespace

extern const SelectTable select_table;
const SelectTable select_table = {stream, narrow, tally, emit<int32_t>, emit<int64_t>, highest};

}  // namespace GCEXT_ISA
}  // namespace gcext
