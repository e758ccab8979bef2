// dct: the bodies, compiled once per instruction set. See dct.h.
#include <cstdint>
#include <cstring>

#include "dct.h"

namespace gcext::GCEXT_ISA {
namespace {

typedef float Floats __attribute__((vector_size(4 * kDctPad)));

int padded(int w) { return (w + kDctPad - 1) / kDctPad * kDctPad; }

uint32_t gather(const Source& s, int64_t first, int64_t stride, int h, int w, float* acc) {
  const int end = padded(w);
  int32_t top = 0;  // keys are not negative as int32, which the baseline can compare
  for (int i = 0; i < h; ++i) {
    const int64_t at = first + i * stride;
    float* const row = acc + i * kMaxDct;
    if (s.memory == nullptr) {
      std::memcpy(row, s.tensor + at, static_cast<size_t>(w) * sizeof(float));
    } else if (s.b == 1.0f) {  // same bits, and no slow path on denormals
      for (int j = 0; j < w; ++j) row[j] = s.tensor[at + j] + s.memory[at + j];
    } else {
      for (int j = 0; j < w; ++j) row[j] = s.tensor[at + j] + s.b * s.memory[at + j];
    }
    for (int j = w; j < end; ++j) row[j] = 0;
    for (int j = 0; j < w; ++j) {
      const int32_t key = static_cast<int32_t>(key_of(row[j]));
      top = key > top ? key : top;
    }
  }
  return static_cast<uint32_t>(top);
}

// kRows rows of the product, kDctPad columns of it.
template <int kRows>
inline void product(const float* a, const float* b, const uint8_t* which, int n, float* out) {
  Floats sum[kRows];
  for (int i = 0; i < kRows; ++i) sum[i] = Floats{};
  for (int j = 0; j < n; ++j) {
    const int at = which[j];
    const Floats row = *reinterpret_cast<const Floats*>(b + at * kMaxDct);
    for (int i = 0; i < kRows; ++i) sum[i] += a[i * kMaxDct + at] * row;
  }
  for (int i = 0; i < kRows; ++i) *reinterpret_cast<Floats*>(out + i * kMaxDct) = sum[i];
}

void multiply(const float* a, const float* b, int h, const uint8_t* which, int n, int w,
              float* out) {
  for (int column = 0; column < w; column += kDctPad) {
    int i = 0;
    for (; i + 4 <= h; i += 4)
      product<4>(a + i * kMaxDct, b + column, which, n, out + i * kMaxDct + column);
    for (; i < h; ++i)
      product<1>(a + i * kMaxDct, b + column, which, n, out + i * kMaxDct + column);
  }
}

int count_above(const int32_t* key, int n, int32_t bound) {
  int count = 0;
  for (int i = 0; i < n; ++i) count += key[i] > bound;
  return count;
}

// 1. The keys, row after row without gaps.
// 2. The largest bound that k keys reach, bit by bit from the top; 1 where fewer are not 0.
// 3. All keys above it, and the first of those that equal it.
int select(const float* coefficients, int h, int w, int k, int16_t* place) {
  alignas(64) int32_t key[kDctArea];
  int32_t any = 0;
  for (int i = 0; i < h; ++i) {
    for (int j = 0; j < w; ++j) {
      key[i * w + j] = static_cast<int32_t>(key_of(coefficients[i * kMaxDct + j]));
      any |= key[i * w + j];
    }
  }
  const int n = h * w;
  int32_t bound = 0;
  int least = n;  // keys that reach the bound
  for (int bit = 30; bit >= 0 && least != k; --bit) {
    const int32_t next = bound | int32_t{1} << bit;
    if (next > any) continue;
    const int reach = count_above(key, n, next - 1);
    if (reach < k) continue;
    bound = next;
    least = reach;
  }
  if (bound == 0) bound = 1;
  int equals = least > k ? k - count_above(key, n, bound) : k;
  int found = 0;
  for (int i = 0; i < h && found < k; ++i) {
    const int32_t* const row = key + i * w;
    int32_t top = 0;
    for (int j = 0; j < w; ++j) top = row[j] > top ? row[j] : top;
    if (top < bound) continue;
    for (int j = 0; j < w && found < k; ++j) {
      if (row[j] < bound || (row[j] == bound && equals-- <= 0)) continue;
      place[found++] = static_cast<int16_t>(i * kMaxDct + j);
    }
  }
  return found;
}

}  // namespace

const DctKernels dct_kernels = {gather, multiply, select};

}  // namespace gcext::GCEXT_ISA
