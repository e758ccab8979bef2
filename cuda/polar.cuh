// polar on CUDA: the kernels. csrc/polar/polar.h has the contract, polar.cu the sequence.
//
// 1. Rank: one block counts the free indices before each index. Any node of the tree is classified
//    by three of the counts, and its messages' place is one of them; so no plan is needed.
// 2. Scale: a block takes a group of 64 lanes. Of real values 64 threads add a lane's magnitudes
//    each, rows in order, and one adds the lanes: the order of the CPU.
// 3. Root: the group's LLRs are written, a byte each.
// 4. Walk: node by node as csrc/polar/polar_code.h plans it, all threads at one node, a barrier
// between
//    steps. Where to go next follows from the bits of the node's first row:
//
//        down to the first child by f (or, where that is all frozen, to the second by a + b)
//        at a leaf: codeword and message; then up while the node is a second child, joining
//        the halves; from a first child to its sibling by g
//
//    A thread takes 4 lanes of a row at a time, or 8 where it gathers signs.
// 5. Rows of fewer than 64 lanes, those of the last group, are packed closely.
//
// Decoding is the transform of the message's rows, a group a block.
//
// Bytes of global memory for a symbol at the default N = 1024: real values 4 + 4 in (the second
// time mostly from the cache), signs 1/8; LLRs of nodes over 2^kLowLevel rows, all in the
// second-level cache, 1 written and 2 read at the root and half of that a level below; the message
// R/8. The bottom of the tree is in shared memory; there the barriers are the limit.
#pragma once

#include <math.h>

#include "common.cuh"
#include "polar_launch.h"

namespace gcext {

constexpr int kPolarThreads = 256;
constexpr int kRankThreads = 1024;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kPolarBlocks = 4;  // of a multiprocessor, which has 1,024 threads there
#else
constexpr int kPolarBlocks = 5;
#endif
constexpr int kLowLevel = 8;        // 32 KiB of LLRs for the nodes up to 2^8 rows
constexpr int64_t kLowRows = 1024;  // 8 KiB for the codeword up to N = 2^10
constexpr int kScaleRows = 16;      // of values that a lane has in flight
constexpr uint64_t kEachByte = 0x0101010101010101u;

// Step 1. before[i]: free indices below i; N + 1 entries.
__global__ void __launch_bounds__(kRankThreads)
    polar_rank_kernel(const uint8_t* frozen, int64_t n, uint32_t* before, int64_t* bad) {
  __shared__ uint64_t warp_sums[kRankThreads / kWarp];
  const int64_t share = ceil_div(n, kRankThreads);
  const int64_t begin = threadIdx.x * share;
  const int64_t end = begin + share < n ? begin + share : n;
  uint64_t count = 0, total;
  for (int64_t i = begin; i < end; ++i) count += frozen[i] == 0;
  count = block_exclusive_sum(count, warp_sums, &total);
  for (int64_t i = begin; i < end; ++i) {
    before[i] = static_cast<uint32_t>(count);
    count += frozen[i] == 0;
  }
  if (threadIdx.x == 0) {
    before[n] = static_cast<uint32_t>(total);
    if (bad != nullptr) *bad = -1;
  }
}

// Four lanes of a row.
struct alignas(4) Four {
  int8_t x[4];
};

// What a block works on. Nodes of 2^l rows have their LLRs at 64 * 2^l, as on the CPU.
struct PolarMemory {
  int8_t* low;   // shared, nodes of up to kLowLevel
  int8_t* high;  // global, the larger ones
  uint64_t* word;
  const uint32_t* before;
  uint64_t* message;
  int correction;

  __device__ int8_t* llr(int level) const {
    return (level <= kLowLevel ? low : high) + (int64_t{kPolarLanes} << level);
  }
  __device__ uint32_t free(int level, uint32_t at) const {
    return before[at + (uint32_t{1} << level)] - before[at];
  }
};

// The fours of `rows` rows that are this thread's.
#define GCEXT_EACH_FOUR(e, rows) \
  for (int64_t e = threadIdx.x; e < (rows) * (kPolarLanes / 4); e += kPolarThreads)
#define GCEXT_EACH(i, n) for (int64_t i = threadIdx.x; i < (n); i += kPolarThreads)

__device__ inline Four* fours(int8_t* llr) { return reinterpret_cast<Four*>(llr); }

// From a node to the LLRs of its first half (f), of its second half given the first (g), or of that
// with the first all frozen (a + b).
__device__ inline void polar_descend(const PolarMemory& m, PolarStep step, int level, uint32_t at) {
  const int64_t half = int64_t{1} << (level - 1);
  const Four *a = fours(m.llr(level)), *b = a + half * (kPolarLanes / 4);
  Four* to = fours(m.llr(level - 1));
  GCEXT_EACH_FOUR(e, half) {
    const Four p = a[e], q = b[e];
    Four r;
    const uint64_t u = step == PolarStep::second
                           ? m.word[at + e / (kPolarLanes / 4)] >> (e % (kPolarLanes / 4) * 4)
                           : 0;
    for (int j = 0; j < 4; ++j) {
      if (step == PolarStep::first) {
        r.x[j] = static_cast<int8_t>(polar_first(p.x[j], q.x[j], m.correction));
      } else {
        r.x[j] = static_cast<int8_t>(polar_clamp(q.x[j] + (u >> j & 1 ? -p.x[j] : p.x[j])));
      }
    }
    to[e] = r;
  }
  __syncthreads();
}

// word = word G_n
__device__ inline void polar_transform(uint64_t* word, int64_t n) {
  for (int64_t half = 1; half < n; half *= 2) {
    GCEXT_EACH(i, n / 2) {
      const int64_t first = i / half * 2 * half + i % half;
      word[first] ^= word[first + half];
    }
    __syncthreads();
  }
}

__device__ inline void polar_leaf(const PolarMemory& m, int level, uint32_t at, uint32_t free) {
  const int64_t rows = int64_t{1} << level;
  uint64_t *word = m.word + at, *message = m.message + m.before[at];
  int8_t* llr = m.llr(level);
  if (free == 0) {
    GCEXT_EACH(i, rows) word[i] = 0;
    __syncthreads();
    return;
  }
  if (free == rows) {
    // Eight lanes' signs are a byte of the row's word.
    GCEXT_EACH(e, rows * 8) {
      const uint64_t x = reinterpret_cast<const uint64_t*>(llr)[e];
      const uint8_t signs =
          static_cast<uint8_t>(((x >> 7) & kEachByte) * 0x0102040810204080u >> 56);
      reinterpret_cast<uint8_t*>(word)[e] = signs;
      reinterpret_cast<uint8_t*>(message)[e] = signs;
    }
    __syncthreads();
    polar_transform(message, rows);
    return;
  }
  // A repetition code: down the second halves, each the sum of its parent's.
  for (int64_t half = rows / 2; half > 0; half /= 2) {
    GCEXT_EACH_FOUR(e, half) {
      Four p = fours(llr)[e];
      const Four q = fours(llr)[e + half * (kPolarLanes / 4)];
      for (int j = 0; j < 4; ++j) p.x[j] = static_cast<int8_t>(polar_clamp(q.x[j] + p.x[j]));
      fours(llr)[e] = p;
    }
    __syncthreads();
  }
  GCEXT_EACH(e, 8) {
    const uint64_t x = reinterpret_cast<const uint64_t*>(llr)[e];
    reinterpret_cast<uint8_t*>(message)[e] =
        static_cast<uint8_t>(((x >> 7) & kEachByte) * 0x0102040810204080u >> 56);
  }
  __syncthreads();
  GCEXT_EACH(i, rows) word[i] = *message;
  __syncthreads();
}

// Step 4.
__device__ inline void polar_walk(const PolarMemory& m, int levels) {
  int level = levels;
  uint32_t at = 0;
  for (;;) {
    const uint32_t rows = uint32_t{1} << level, free = m.free(level, at);
    const bool last = free == 1 && m.before[at + rows - 1] == m.before[at];
    if (free != 0 && free != rows && !last) {
      --level;
      if (m.free(level, at) == 0) {
        polar_descend(m, PolarStep::sum, level + 1, at);
        at += rows / 2;
      } else {
        polar_descend(m, PolarStep::first, level + 1, at);
      }
      continue;
    }
    polar_leaf(m, level, at, free);
    for (; level < levels && (at >> level & 1) != 0; ++level) {
      const uint32_t half = uint32_t{1} << level;
      at -= half;
      uint64_t* word = m.word + at;
      const bool frozen = m.free(level, at) == 0;
      GCEXT_EACH(i, half) word[i] = frozen ? word[half + i] : word[i] ^ word[half + i];
      __syncthreads();
    }
    if (level == levels) return;
    polar_descend(m, PolarStep::second, level + 1, at);
    at += uint32_t{1} << level;
  }
}

// Step 2: the factor and the scale, and false where a value is not finite. Every thread must call.
__device__ inline bool polar_scale_of(const PolarEncodeLaunch& a, int64_t group, float* lane_sum,
                                      float* factor_scale) {
  const int64_t n = a.groups.symbols(group), lanes = a.groups.lanes_of(group);
  const float* value = a.value + a.groups.start(group);
  const int j = threadIdx.x;
  float factor = 1.0f;
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (j < kPolarLanes) {
      float sum = 0.0f;
      if (j < lanes) {
        for (int64_t at = j; at < n; at += kScaleRows * lanes) {
          float v[kScaleRows];
#pragma unroll
          for (int r = 0; r < kScaleRows; ++r)
            v[r] = at + r * lanes < n ? value[at + r * lanes] : 0.0f;
#pragma unroll
          for (int r = 0; r < kScaleRows; ++r) sum += fabsf(v[r] * factor);
        }
      }
      lane_sum[j] = sum;
    }
    __syncthreads();
    if (j == 0) {
      double sum = 0;
      for (int i = 0; i < kPolarLanes; ++i) sum += static_cast<double>(lane_sum[i]);
      if (attempt == 0) factor_scale[0] = polar_factor(sum);
      // Only what is not finite has a sum beyond this with its factor.
      factor_scale[1] = sum <= 1e300 ? polar_scale(sum, a.weight, n) : -1.0f;
    }
    __syncthreads();
    factor = factor_scale[0];
    if (factor == 1.0f) break;
  }
  if (factor_scale[1] >= 0.0f) return true;
  GCEXT_EACH(i, n) {
    if (!(fabsf(value[i]) <= 3.40282347e38f)) {
      atomic_min(reinterpret_cast<uint64_t*>(a.bad),
                 static_cast<uint64_t>(a.groups.start(group) + i));
    }
  }
  return false;
}

// Step 3.
__device__ inline void polar_root(const PolarEncodeLaunch& a, int64_t group,
                                  const float* factor_scale, int8_t* llr) {
  const int64_t n = a.groups.symbols(group), lanes = a.groups.lanes_of(group);
  const int64_t start = a.groups.start(group);
  const int weight = static_cast<int>(a.weight);
  GCEXT_EACH_FOUR(e, a.groups.block) {
    const int64_t row = e / (kPolarLanes / 4), lane = e % (kPolarLanes / 4) * 4;
    Four r;
    for (int j = 0; j < 4; ++j) {
      const int64_t i = row * lanes + lane + j;
      if (lane + j >= lanes || i >= n) {
        r.x[j] = 0;
      } else if (a.value != nullptr) {
        r.x[j] = polar_quantised((a.value[start + i] * factor_scale[0]) * factor_scale[1]);
      } else {
        const bool one = a.packed[(start + i) / 8] >> (i % 8) & 1;
        r.x[j] = static_cast<int8_t>(one ? -weight : weight);
      }
    }
    fours(llr)[e] = r;
  }
  __syncthreads();
}

// Rows of `lanes` bits, closely packed into `bits` bits.
__device__ inline void polar_gather(const uint64_t* word, int64_t lanes, int64_t bits,
                                    uint8_t* to) {
  GCEXT_EACH(byte, ceil_div(bits, 8)) {
    unsigned x = 0;
    for (int64_t bit = 8 * byte; bit < 8 * byte + 8 && bit < bits; ++bit) {
      x |= static_cast<unsigned>(word[bit / lanes] >> (bit % lanes) & 1) << (bit % 8);
    }
    to[byte] = static_cast<uint8_t>(x);
  }
}

// The codeword of a group to its place among all symbols, which begin on a multiple of 8 bytes.
__device__ inline void polar_store_symbols(const PolarGroups& groups, int64_t group,
                                           const uint64_t* word, uint8_t* symbols) {
  uint8_t* to = symbols + groups.start(group) / 8;
  if (groups.whole(group)) {
    GCEXT_EACH(i, groups.block) reinterpret_cast<uint64_t*>(to)[i] = word[i];
  } else {
    polar_gather(word, groups.lanes_of(group), groups.symbols(group), to);
  }
}

// Steps 2 to 5.
__global__ void __launch_bounds__(kPolarThreads, kPolarBlocks)
    polar_encode_kernel(PolarEncodeLaunch a, const uint32_t* before, uint8_t* scratch) {
  __shared__ uint64_t low_llr[(kPolarLanes / 8) << (kLowLevel + 1)];
  __shared__ uint64_t low_word[kLowRows];
  __shared__ float lane_sum[kPolarLanes];
  __shared__ float factor_scale[2];
  const int64_t block = a.groups.block;
  if (before[block] != a.kept) return;
  uint8_t* mine = scratch + blockIdx.x * polar_block_bytes(block);
  uint64_t* rows = reinterpret_cast<uint64_t*>(mine + 2 * kPolarLanes * block);
  PolarMemory m = {};
  m.low = reinterpret_cast<int8_t*>(low_llr);
  m.high = reinterpret_cast<int8_t*>(mine);
  m.word = block <= kLowRows ? low_word : rows + block;
  m.before = before;
  m.correction = a.correction;
  for (int64_t group = blockIdx.x; group < a.groups.count; group += gridDim.x) {
    const int64_t lanes = a.groups.lanes_of(group);
    __syncthreads();
    if (a.value != nullptr && !polar_scale_of(a, group, lane_sum, factor_scale)) continue;
    polar_root(a, group, factor_scale, m.llr(a.levels));
    uint8_t* to = a.message + group * a.kept * 8;
    m.message = lanes == kPolarLanes ? reinterpret_cast<uint64_t*>(to) : rows;
    polar_walk(m, a.levels);
    if (lanes < kPolarLanes) polar_gather(rows, lanes, a.kept * lanes, to);
    if (a.symbols != nullptr) polar_store_symbols(a.groups, group, m.word, a.symbols);
  }
}

// The message may begin at any byte.
__global__ void __launch_bounds__(kPolarThreads)
    polar_decode_kernel(PolarDecodeLaunch a, const uint32_t* before, uint8_t* scratch) {
  __shared__ uint64_t low_word[kLowRows];
  const int64_t block = a.groups.block;
  const int64_t kept = before[block];
  if (a.groups.message_bytes(kept) != a.bytes) return;
  uint64_t* word =
      block <= kLowRows ? low_word : reinterpret_cast<uint64_t*>(scratch) + blockIdx.x * block;
  for (int64_t group = blockIdx.x; group < a.groups.count; group += gridDim.x) {
    const int64_t lanes = a.groups.lanes_of(group);
    const uint8_t* from = a.message + group * kept * 8;
    __syncthreads();
    GCEXT_EACH(i, block) {
      uint64_t x = 0;
      const int64_t row = before[i];
      if (before[i + 1] == row) {
        // frozen
      } else if (lanes == kPolarLanes) {
        for (int j = 0; j < 8; ++j) x |= static_cast<uint64_t>(from[8 * row + j]) << (8 * j);
      } else {
        for (int64_t j = 0; j < lanes; ++j) {
          const int64_t bit = row * lanes + j;
          x |= static_cast<uint64_t>(from[bit / 8] >> (bit % 8) & 1) << j;
        }
      }
      word[i] = x;
    }
    __syncthreads();
    polar_transform(word, block);
    polar_store_symbols(a.groups, group, word, a.packed);
  }
}

// A thread a symbol; those that are missing in a byte of eight read as 0.
__global__ void __launch_bounds__(kPolarThreads)
    polar_pack_kernel(const uint8_t* symbol, int64_t n, uint8_t* packed) {
  const int64_t i = int64_t{blockIdx.x} * kPolarThreads + threadIdx.x;
  const int lane = threadIdx.x % kWarp;
  const unsigned row = __ballot_sync(kWholeWarp, i < n && symbol[i] != 0);
  const int64_t byte = (i - lane) / 8 + lane;
  if (lane < kWarp / 8 && byte < ceil_div(n, 8))
    packed[byte] = static_cast<uint8_t>(row >> (8 * lane));
}

__global__ void __launch_bounds__(kPolarThreads)
    polar_unpack_kernel(const uint8_t* packed, int64_t n, uint8_t* symbol) {
  const int64_t i = int64_t{blockIdx.x} * kPolarThreads + threadIdx.x;
  if (i < n) symbol[i] = packed[i / 8] >> (i % 8) & 1;
}

#undef GCEXT_EACH
#undef GCEXT_EACH_FOUR

}  // namespace gcext
