// bits on CUDA: the kernels. csrc/bits.h has the layout, planes.cuh the words, bits.cu the
// launches.
//
// 1. Packing gathers: a thread owns a word and collects the values that overlap it, so no word is
//    written twice and none is read. 32/b + 1 loads a word, all but the first and last shared with
//    nobody.
// 2. Unpacking: a thread owns a value, which lies in at most three words.
// 3. Signs: a ballot of a warp is a word.
// 4. Of unpacked signs a thread owns four, half a byte: one store.
//
// Traffic of n values: 4*n bytes on one side, n*b/8 on the other, each once.
#pragma once

#include "bits_launch.h"
#include "planes.cuh"

namespace gcext {

constexpr int kBitsThreads = 256;

// Step 1.
__global__ void __launch_bounds__(kBitsThreads)
    bits_pack_kernel(const uint32_t* value, int64_t n, int b, uint32_t* plane) {
  for (int64_t w = grid_first(); w < ceil_div(n * b, 32); w += grid_stride())
    plane[w] = plane_word(value, n, b, 32 * w);
}

// Step 2.
__global__ void __launch_bounds__(kBitsThreads)
    bits_unpack_kernel(BitStream plane, int64_t n, int b, uint32_t* value) {
  for (int64_t i = grid_first(); i < n; i += grid_stride())
    value[i] = static_cast<uint32_t>(plane.read(i * b, b));
}

// Step 3. The loop is over whole warps: every lane must come to the ballot.
__global__ void __launch_bounds__(kBitsThreads)
    bits_pack_signs_kernel(const float* value, int64_t n, uint32_t* plane) {
  const int64_t lane = threadIdx.x % kWarp;
  for (int64_t first = grid_first() - lane; first < n; first += grid_stride()) {
    const bool minus = first + lane < n && __float_as_int(value[first + lane]) < 0;
    const unsigned word = __ballot_sync(kWholeWarp, minus);
    if (lane == 0) plane[first / kWarp] = word;
  }
}

// Step 4. The division costs as much as the store: there is none where one scale serves all.
__global__ void __launch_bounds__(kBitsThreads)
    bits_unpack_signs_kernel(const uint8_t* plane, int64_t n, SignScale scale, float* value) {
  const bool aligned = is_aligned(value);
  for (int64_t q = grid_first(); q < ceil_div(n, 4); q += grid_stride()) {
    const int64_t i = 4 * q;
    const float own = scale.many == nullptr ? scale.one : scale.many[i / scale.run];
    const uint32_t key = static_cast<uint32_t>(__float_as_int(own));
    const uint32_t four = static_cast<uint32_t>(plane[q / 2]) >> (q % 2 * 4);
    Quad quad;
    for (int c = 0; c < 4; ++c)
      quad.x[c] = __int_as_float(static_cast<int>(key ^ (four >> c & 1) << 31));
    store_quad(value, i, n, aligned, quad);
  }
}

}  // namespace gcext
