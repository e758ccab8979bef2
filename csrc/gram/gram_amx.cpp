#include "gram_amx.h"

#if defined(__linux__) && defined(__x86_64__) && defined(GCEXT_HAVE_AVX512)
#define GCEXT_AMX
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12's own intrinsics headers trip these two.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstring>

namespace gcext {

#ifdef GCEXT_AMX
namespace {

bool granted() {
  constexpr unsigned kTileAndInt8 = 3u << 24;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTileAndInt8) != kTileAndInt8)
    return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// 16 rows of 16 quadruples of bytes: pairs, fours, then quarters of registers change places.
__attribute__((target("avx512f"))) void transpose(const int8_t* from, int8_t* to) {
  __m512i x[16], y[16];
  for (int i = 0; i < 16; ++i) x[i] = _mm512_load_si512(from + 64 * i);
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int half = 0; half < 16; half += 8) {
    for (int i = half; i < half + 4; ++i) {
      y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
      y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    }
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_store_si512(to + 64 * i, _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88));
    _mm512_store_si512(to + 64 * (i + 8), _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd));
  }
}

}  // namespace

bool TileCounts::available() {
  static const bool there = granted();
  return isa() == Isa::avx512 && there;
}

__attribute__((noinline, target("avx512f,avx512bw"))) void TileCounts::expand(
    const std::vector<Planes>& planes, int64_t word, int64_t words) {
  const __m512i plus = _mm512_set1_epi8(1), minus = _mm512_set1_epi8(-1);
  for (int64_t i = 0; i < packets_; ++i) {
    int8_t* row = a_ + i / kSide * kWords * kTileBytes + i % kSide * 64;
    for (int64_t w = 0; w < words; ++w) {
      const __m512i sign = _mm512_mask_blend_epi8(planes[i].minus[word + w], plus, minus);
      _mm512_store_si512(row + w * kTileBytes,
                         _mm512_maskz_mov_epi8(planes[i].there[word + w], sign));
    }
  }
  for (int64_t panel = 0; panel < panels_; ++panel)
    for (int64_t w = 0; w < words; ++w) {
      const int64_t at = (panel * kWords + w) * kTileBytes;
      transpose(a_ + at, b_ + at);
    }
}

__attribute__((noinline, target("amx-tile,amx-int8"))) void TileCounts::multiply(int64_t words) {
  const TileConfig config;
  const int64_t side = kSide * panels_, stride = 4 * side;
  asm volatile("" ::: "memory");  // the tile instructions do not declare that they read memory
  _tile_loadconfig(&config);
  for (int64_t i = 0; i < panels_; i += 2) {
    for (int64_t j = 0; j <= i; j += 2) {
      int32_t* sum = sum_.data() + kSide * (i * side + j);
      int32_t* below = sum + kSide * side;
      _tile_loadd(0, sum, stride);
      _tile_loadd(1, sum + kSide, stride);
      _tile_loadd(2, below, stride);
      _tile_loadd(3, below + kSide, stride);
      const int8_t *a = a_ + i * kWords * kTileBytes, *b = b_ + j * kWords * kTileBytes;
      for (int64_t w = 0; w < words; ++w, a += kTileBytes, b += kTileBytes) {
        _tile_loadd(4, a, 64);
        _tile_loadd(5, a + kWords * kTileBytes, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + kWords * kTileBytes, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
      _tile_stored(0, sum, stride);
      _tile_stored(1, sum + kSide, stride);
      _tile_stored(2, below, stride);
      _tile_stored(3, below + kSide, stride);
    }
  }
  _tile_release();
}

#else

bool TileCounts::available() { return false; }
void TileCounts::expand(const std::vector<Planes>&, int64_t, int64_t) {}
void TileCounts::multiply(int64_t) {}

#endif

TileCounts::TileCounts(int64_t packets)
    : packets_(packets),
      panels_((packets + 2 * kSide - 1) / (2 * kSide) * 2),
      storage_(static_cast<size_t>(2 * panels_ * kWords * kTileBytes + 64)),
      a_(storage_.data() + (64 - reinterpret_cast<uintptr_t>(storage_.data()) % 64)),
      b_(a_ + panels_ * kWords * kTileBytes),
      sum_(static_cast<size_t>(kSide * panels_ * kSide * panels_)) {}

void TileCounts::add(const std::vector<Planes>& planes, int64_t words) {
  for (int64_t word = 0; word < words; word += kWords) {
    const int64_t here = std::min(kWords, words - word);
    expand(planes, word, here);
    multiply(here);
  }
}

void TileCounts::spill(int64_t* count) {
  const int64_t side = kSide * panels_;
  for (int64_t i = 0; i < packets_; ++i)
    for (int64_t j = 0; j < i; ++j) *count++ += sum_[static_cast<size_t>(i * side + j)];
  std::fill(sum_.begin(), sum_.end(), 0);
}

}  // namespace gcext
