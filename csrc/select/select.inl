// Bodies of select.h for one instruction set. The vector paths go 16 or 8 elements at a time;
// whatever is left, and the baseline, is plain C.
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../common/front.h"
#include "../common/lanes.h"
#include "../common/widen.h"
#include "select.h"

namespace gcext::GCEXT_ISA {
namespace {

// The memory that is added: none, as it stands, or less what was sent of it.
enum class Memory { kNone, kWhole, kLess };

// kScaled leaves the multiplications out for a = b = 1: same bits, and no slow path on denormals.
template <Memory kMemory, bool kScaled>
inline float accumulate(const HostSource& s, const Taken& taken, int64_t i) {
  const float x = s.tensor[i - s.first], t = kScaled ? s.a * x : x;
  if (kMemory == Memory::kNone) return t;
  const float m = kMemory == Memory::kLess ? rest_of(s.memory[i], taken) : s.memory[i];
  return t + (kScaled ? s.b * m : m);
}

template <Memory kMemory, bool kScaled>
int64_t stream_plain(const HostSource& s, const Taken& taken, int64_t begin, int64_t n,
                     uint32_t start, uint32_t low, Candidates to, uint32_t* highest) {
  // In blocks, so that the first loop vectorises: most blocks hold no candidate.
  constexpr int64_t kBlock = 64;
  int64_t count = 0;
  uint32_t top = *highest;
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t m = n - at < kBlock ? n - at : kBlock;
    float acc[kBlock];
    uint32_t block_top = 0;
    for (int64_t i = 0; i < m; ++i) acc[i] = accumulate<kMemory, kScaled>(s, taken, begin + at + i);
    for (int64_t i = 0; i < m; ++i) {
      const uint32_t key = key_of(acc[i]);
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

// Registers: kWidth floats or words each, kUnroll of them a step.
#if defined(__AVX512F__)

#define GCEXT_SELECT_VECTORS
using Floats = __m512;
using Words = __m512i;
using Mask = __mmask16;
constexpr int kWidth = 16, kUnroll = 4;

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Words all(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline Words count_up() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline Words plus(Words a, Words b) { return _mm512_add_epi32(a, b); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
inline void store_past_cache(float* p, Floats x) { _mm512_stream_ps(p, x); }
inline Words words_of(Floats x) { return _mm512_castps_si512(x); }
inline Words keys_of(Floats x) { return _mm512_and_si512(words_of(x), all(0x7fffffffu)); }
inline Words larger(Words a, Words b) { return _mm512_max_epu32(a, b); }
inline uint32_t largest(Words x) { return _mm512_reduce_max_epu32(x); }
inline Mask at_least(Words keys, uint32_t low) { return _mm512_cmpge_epu32_mask(keys, all(low)); }
inline Floats less(Floats m, Words low, Words keep, Words bits) {
  constexpr int kAndOr = 0xea;  // (a & b) | c
  const Words sent = _mm512_ternarylogic_epi32(words_of(m + all(0.0f)), keep, bits, kAndOr);
  const Mask mask = _mm512_cmpge_epu32_mask(keys_of(m), low);
  return _mm512_mask_sub_ps(m, mask, m, _mm512_castsi512_ps(sent));
}

// The words of the mask's lanes, closed up. Compressed in a register, then stored plainly:
// memory-destination compress-stores are microcoded on Zen 4.
inline void store_front(uint32_t* to, Words x, Mask mask) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask, x));
}

#elif defined(__AVX2__)

#define GCEXT_SELECT_VECTORS
using Floats = __m256;
using Words = __m256i;
using Mask = unsigned;
constexpr int kWidth = 8, kUnroll = 2;

inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Words all(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
inline Words count_up() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
inline Words plus(Words a, Words b) { return _mm256_add_epi32(a, b); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
inline void store_past_cache(float* p, Floats x) { _mm256_stream_ps(p, x); }
inline Words words_of(Floats x) { return _mm256_castps_si256(x); }
inline Words keys_of(Floats x) { return _mm256_and_si256(words_of(x), all(0x7fffffffu)); }
inline Words larger(Words a, Words b) { return _mm256_max_epi32(a, b); }
inline uint32_t largest(Words x) {
  alignas(32) uint32_t lane[kWidth];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), x);
  uint32_t top = 0;
  for (const uint32_t each : lane) top = each > top ? each : top;
  return top;
}
inline Mask at_least(Words keys, uint32_t low) {  // keys are positive as int32
  return static_cast<unsigned>(
      _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(keys, all(low - 1)))));
}
inline Floats less(Floats m, Words low, Words keep, Words bits) {
  const Words sent = _mm256_or_si256(_mm256_and_si256(words_of(m + all(0.0f)), keep), bits);
  const Words mask = _mm256_cmpgt_epi32(keys_of(m), plus(low, all(UINT32_MAX)));
  return m - _mm256_castsi256_ps(_mm256_and_si256(sent, mask));  // m - 0 is m
}

inline void store_front(uint32_t* to, Words x, Mask mask) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), to_front(x, mask));
}

#endif

template <Memory kMemory, bool kScaled, bool kBypass>
int64_t stream_with(const HostSource& s, const Taken& taken, int64_t begin, int64_t n,
                    uint32_t start, uint32_t low, Candidates to, uint32_t* highest) {
  int64_t count = 0, at = 0;
#if defined(GCEXT_SELECT_VECTORS)
  // Pointers of its own: after each store the compiler would read those of `s` again.
  const float* const tensor = s.tensor + (begin - s.first);
  const float* const memory = kMemory == Memory::kNone ? nullptr : s.memory + begin;
  float* const out = s.out == nullptr ? nullptr : s.out + begin;
  uint32_t *place_to = to.start, *bits_to = to.bits;
  const Floats a = all(s.a), b = all(s.b);
  const Words taken_low = all(taken.low), keep = all(taken.keep), bits = all(taken.bits);
  Words top = all(*highest);
  for (; at + kUnroll * kWidth <= n; at += kUnroll * kWidth) {
    Floats acc[kUnroll];
    Words keys[kUnroll], step_top;
    for (int j = 0; j < kUnroll; ++j) {
      const int64_t i = at + kWidth * j;
      acc[j] = kScaled ? a * load(tensor + i) : load(tensor + i);
      if (kMemory == Memory::kNone) continue;
      Floats m = load(memory + i);
      if (kMemory == Memory::kLess) m = less(m, taken_low, keep, bits);
      acc[j] = acc[j] + (kScaled ? b * m : m);
    }
    for (int j = 0; j < kUnroll && out != nullptr; ++j) {
      float* const to_here = out + at + kWidth * j;
      kBypass ? store_past_cache(to_here, acc[j]) : store(to_here, acc[j]);
    }
    for (int j = 0; j < kUnroll; ++j) {
      keys[j] = keys_of(acc[j]);
      step_top = j == 0 ? keys[0] : larger(step_top, keys[j]);
    }
    top = larger(top, step_top);
    for (int j = 0; j < kUnroll; ++j) {
      const Mask mask = at_least(keys[j], low);
      if (!to.many && mask == 0) continue;
      const Words place = plus(all(start + static_cast<uint32_t>(at + kWidth * j)), count_up());
      store_front(place_to, place, mask);
      store_front(bits_to, words_of(acc[j]), mask);
      const int found = __builtin_popcount(mask);
      place_to += found;
      bits_to += found;
    }
  }
  count = place_to - to.start;
  if (kBypass) _mm_sfence();  // other threads update what was stored past the cache
  *highest = largest(top);
#endif
  Candidates rest{to.start + count, to.bits + count, to.many};
  return count + stream_plain<kMemory, kScaled>(s, taken, begin + at, n - at,
                                                start + static_cast<uint32_t>(at), low, rest,
                                                highest);
}

template <Memory kMemory>
int64_t stream_of(const HostSource& s, const Taken& taken, int64_t begin, int64_t n, bool bypass,
                  uint32_t start, uint32_t low, Candidates to, uint32_t* highest) {
  const bool scaled = s.a != 1.0f || (s.memory != nullptr && s.b != 1.0f);
  const auto with =
      scaled ? (bypass ? stream_with<kMemory, true, true> : stream_with<kMemory, true, false>)
             : (bypass ? stream_with<kMemory, false, true> : stream_with<kMemory, false, false>);
  return with(s, taken, begin, n, start, low, to, highest);
}

int64_t stream(const HostSource& s, int64_t begin, int64_t n, bool bypass, uint32_t start,
               uint32_t low, Candidates to, uint32_t* highest) {
  if (s.half.at != nullptr) {
    int64_t count = 0;
    for_widened(s, begin, n, [&](int64_t at, int64_t m, const HostSource& here) {
      const Candidates rest{to.start + count, to.bits + count, to.many};
      count += stream(here, at, m, bypass, start + static_cast<uint32_t>(at - begin), low, rest,
                      highest);
    });
    return count;
  }
  if (s.memory == nullptr)
    return stream_of<Memory::kNone>(s, {}, begin, n, bypass, start, low, to, highest);
  if (s.sent == nullptr)
    return stream_of<Memory::kWhole>(s, {}, begin, n, bypass, start, low, to, highest);
  const Taken at = taken_of(s.sent), after{at.low + 1, at.keep, at.bits};
  const int64_t ties = before_cut(s.sent, begin, n);
  const bool whole = ties == 0 || ties == n;  // stores past the cache need aligned ones
  int64_t count = 0;
  if (ties > 0) {
    count = stream_of<Memory::kLess>(s, at, begin, ties, bypass && whole, start, low, to, highest);
  }
  if (ties < n) {
    const Candidates rest{to.start + count, to.bits + count, to.many};
    count += stream_of<Memory::kLess>(s, after, begin + ties, n - ties, bypass && whole,
                                      start + static_cast<uint32_t>(ties), low, rest, highest);
  }
  return count;
}

void rest(const float* memory, const int64_t* sent, int64_t begin, int64_t n, float* to) {
  Taken taken = taken_of(sent);
  const int64_t cut = begin + before_cut(sent, begin, n);
  for (int64_t i = begin; i < cut; ++i) to[i] = rest_of(memory[i], taken);
  ++taken.low;
  for (int64_t i = cut; i < begin + n; ++i) to[i] = rest_of(memory[i], taken);
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

// In the compiler's vectors, of the width that the processor has. What is selected lies mostly
// within a few powers of two above the threshold, so the first kNear exponents have 32-bit sums in
// registers (2^8 mantissas fit); the others go to their bins one by one. They are looked for in
// short runs, as heavy-tailed data has some in every thousand.
void tally(const uint32_t* bits, int64_t n, uint32_t key, int64_t* greater, int64_t* equal,
           uint64_t* bins) {
  typedef uint32_t Keys __attribute__((vector_size(kNative), aligned(4), may_alias));
  constexpr int kNear = 4;
  constexpr int64_t kKeys = kNative / sizeof(uint32_t), kBatch = kKeys * 255, kRun = kKeys * 15;
  const uint32_t first = key >> 23;
  const auto is_far = [&](uint32_t k) { return k > key && (k >> 23) - first >= kNear; };
  int64_t at = 0;
  while (n - at >= kKeys) {
    const int64_t end = at + ((n - at < kBatch ? n - at : kBatch) / kKeys * kKeys);
    Keys near[kNear] = {}, over_count = {}, equal_count = {};
    while (at < end) {
      const int64_t begin = at, stop = end - at < kRun ? end : at + kRun;
      Keys far = {};
      for (; at < stop; at += kKeys) {
        Keys k;
        std::memcpy(&k, bits + at, sizeof k);
        k &= 0x7fffffffu;
        const Keys over = (Keys)(k > key);
        const Keys step = (k >> 23) - first;
        const Keys mantissa = ((k & 0x7fffffu) | ((Keys)(k > 0x7fffffu) & 0x800000u)) & over;
        over_count -= over;
        equal_count -= (Keys)(k == key);
        far |= over & (Keys)(step >= static_cast<uint32_t>(kNear));
        for (int e = 0; e < kNear; ++e)
          near[e] += mantissa & (Keys)(step == static_cast<uint32_t>(e));
      }
      uint32_t any = 0;
      for (int lane = 0; lane < kKeys; ++lane) any |= far[lane];
      for (int64_t i = begin; any != 0 && i < stop; ++i) {
        const uint32_t k = key_of(bits[i]);
        if (is_far(k)) bins[bin_of(k)] += mantissa_of(k);
      }
    }
    for (int lane = 0; lane < kKeys; ++lane) {
      *greater += over_count[lane];
      *equal += equal_count[lane];
      for (int e = 0; e < kNear && first + e < kBins; ++e) bins[first + e] += near[e][lane];
    }
  }
  for (; at < n; ++at) {
    const uint32_t k = key_of(bits[at]);
    *greater += k > key;
    *equal += k == key;
    if (k > key) bins[bin_of(k)] += mantissa_of(k);
  }
}

// Updates of out are scattered: their lines are prefetched, to write, so many candidates ahead.
constexpr int64_t kAhead = 32;

template <class Index>
int64_t emit_at(Candidates from, int64_t n, uint32_t low, int64_t base, bool ternary,
                uint32_t mean_bits, Index* index, float* value, int64_t at, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    if (out != nullptr && i + kAhead < n) {
      __builtin_prefetch(out + base + from.start[i + kAhead], 1);
    }
    const uint32_t bits = from.bits[i];
    if (key_of(bits) < low) continue;
    const int64_t place = base + from.start[i];
    const float sent = float_of(ternary ? mean_bits | (bits & 0x80000000u) : bits);
    index[at] = static_cast<Index>(place);
    value[at] = sent;
    if (out != nullptr) out[place] = float_of(bits) - sent;
    ++at;
  }
  return at;
}

#if defined(__AVX512F__)
// Sixteen candidates at a time: which of them are selected is hard to predict. Writes no entry
// beyond the last, as another thread's begin there.
int64_t emit_narrow(Candidates from, int64_t n, uint32_t low, int64_t base, bool ternary,
                    uint32_t mean_bits, int32_t* index, float* value, int64_t at, float* out) {
  const Words sign = all(0x80000000u), mean = all(mean_bits),
              first = all(static_cast<uint32_t>(base));
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Words bits = _mm512_loadu_si512(from.bits + i);
    const Mask mask = at_least(_mm512_andnot_si512(sign, bits), low);
    if (out != nullptr && i + kAhead + kWidth <= n) {
      for (int j = 0; j < kWidth; ++j)
        __builtin_prefetch(out + base + from.start[i + kAhead + j], 1);
    }
    if (mask == 0) continue;
    const int count = __builtin_popcount(mask);
    const Mask front = static_cast<Mask>((1u << count) - 1);
    const Words acc = _mm512_maskz_compress_epi32(mask, bits);
    const Words start = _mm512_maskz_compress_epi32(mask, _mm512_loadu_si512(from.start + i));
    const Words sent = ternary ? _mm512_or_si512(mean, _mm512_and_si512(acc, sign)) : acc;
    _mm512_mask_storeu_epi32(index + at, front, plus(first, start));
    _mm512_mask_storeu_epi32(value + at, front, sent);
    at += count;
    if (out == nullptr) continue;
    alignas(64) uint32_t place[kWidth];
    alignas(64) float left[kWidth];
    _mm512_store_si512(place, start);
    _mm512_store_ps(left, _mm512_castsi512_ps(acc) - _mm512_castsi512_ps(sent));
    for (int j = 0; j < count; ++j) out[base + place[j]] = left[j];
  }
  const Candidates rest{from.start + i, from.bits + i};
  return emit_at(rest, n - i, low, base, ternary, mean_bits, index, value, at, out);
}
#endif

int64_t emit(Candidates from, int64_t n, uint32_t low, int64_t base, bool ternary,
             uint32_t mean_bits, const Pairs& to, int64_t at, float* out) {
  if (to.wide) {
    int64_t* const index = static_cast<int64_t*>(to.index);
    return emit_at(from, n, low, base, ternary, mean_bits, index, to.value, at, out);
  }
#if defined(__AVX512F__)
  const auto narrow = emit_narrow;
#else
  const auto narrow = emit_at<int32_t>;
#endif
  return narrow(from, n, low, base, ternary, mean_bits, static_cast<int32_t*>(to.index), to.value,
                at, out);
}

uint32_t highest(const float* x, int64_t n) {
  uint32_t top = 0;
  int64_t i = 0;
#if defined(__AVX512F__)
  Words most[kUnroll] = {};
  for (; i + kUnroll * kWidth <= n; i += kUnroll * kWidth) {
    for (int j = 0; j < kUnroll; ++j) most[j] = larger(most[j], keys_of(load(x + i + kWidth * j)));
  }
  for (const Words& each : most) top = largest(each) > top ? largest(each) : top;
#endif
  for (; i < n; ++i) {
    const uint32_t k = key_of(x[i]);
    top = k > top ? k : top;
  }
  return top;
}

}  // namespace

const SelectTable select_table = {stream, narrow, tally, emit, highest, rest};

}  // namespace gcext::GCEXT_ISA
