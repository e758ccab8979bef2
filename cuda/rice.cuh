// rice on CUDA: the kernels. csrc/rice.h has the code, docs/wire-format.md the streams, rice.cu the
// sequence.
//
//   tiles   |--1024--|--1024--|--1024--|--1024--|-      a thread: four consecutive numbers of a
//   tile
//           <---- block 0 ----><---- block 1 ----       a block: contiguous tiles, one after
//           another
//
// Packing, k and the numbers read from the device:
//
// 1. Measure: each tile's b, by a search in base 4: S(b) never rises, and three S are added up in
//    one 64-bit sum. b and zeros go to the tile table, the bits of a block's tiles to its totals.
//    What follows the table is cleared.
// 2. Write: every block adds up the totals before its own, which is where it begins in each stream.
//    A tile's remainders are gathered word by word (planes.cuh), its unary part is or-ed together
//    in shared memory, its signs are ballots. A word that lies wholly in the tile's part of a
//    stream is stored; one on an edge may belong to two and is or-ed into the zeros of step 1.
//
// Unpacking:
//
// 3. Read: every block adds up the table before its own tiles. The ones of the unary part are found
//    16 bits a thread, counted by a scan; with the remainders' scan they give each number less what
//    lies before the tile. A tile's span is its last number so, plus one.
// 4. Place: every block adds up the spans before its own and adds them to its numbers.
//
// Traffic: packing reads 4*k bytes of indices twice (the second time from the cache), 4*k of
// values, and writes the streams twice, about 1.2*k at p = 0.01. Unpacking reads these, writes 8*k
// and passes over the indices once more. Beside the 12*numel bytes of a select both are small, so
// it is two launches each that count.
#pragma once

#include "planes.cuh"
#include "rice_launch.h"

namespace gcext {

constexpr int kRiceThreads = 256;
constexpr int kOwn = static_cast<int>(kTile) / kRiceThreads;
constexpr int64_t kTableEntry = 3;  // u8 b, u16 zeros

struct Numbers {
  const void* index;
  bool wide;

  __device__ int64_t at(int64_t i) const {
    return wide ? static_cast<const int64_t*>(index)[i] : static_cast<const int32_t*>(index)[i];
  }
};

// Of one block's tiles.
struct PackTotals {
  uint64_t remainder_bits, unary_bits, wrong;
};
struct UnpackTotals {
  uint64_t span, wrong;
};

struct TileRange {
  int64_t begin, end;
};

// The same in every kernel of a call, as they have the same grid.
__device__ inline TileRange tile_range(int64_t k) {
  const int64_t tiles = ceil_div(k, kTile), step = ceil_div(tiles, gridDim.x);
  const int64_t begin = step * blockIdx.x, end = begin + step;
  return {begin < tiles ? begin : tiles, end < tiles ? end : tiles};
}

__device__ inline int64_t tile_numbers(int64_t tile, int64_t k) {
  const int64_t left = k - tile * kTile;
  return left < kTile ? left : kTile;
}

__device__ inline uint64_t block_sum(uint64_t x, uint64_t* warp_sums) {
  uint64_t total;
  block_exclusive_sum(x, warp_sums, &total);
  return total;
}

// How many of at most `most` pairs there are.
__device__ inline int64_t packed_count(const int64_t* info, int64_t most) {
  if (info[kInfoStatus] != kSelectOk) return 0;
  return info[kInfoCount] < most ? info[kInfoCount] : most;
}

// This thread's four gaps of the tile that begins at number `first`; zeros after the last.
// Returns whether one of the numbers does not rise, or is not below numel.
__device__ inline bool own_gaps(const Numbers& numbers, int64_t k, int64_t numel, int64_t first,
                                uint64_t* gap) {
  const int64_t mine = first + static_cast<int64_t>(threadIdx.x) * kOwn;
  int64_t before = mine > 0 && mine < k ? numbers.at(mine - 1) : -1;
  bool wrong = false;
  for (int j = 0; j < kOwn; ++j) {
    gap[j] = 0;
    if (mine + j >= k) continue;
    const int64_t number = numbers.at(mine + j);
    wrong = wrong || number <= before || number >= numel;
    gap[j] = static_cast<uint64_t>(number) - static_cast<uint64_t>(before) - 1;
    before = number;
  }
  return wrong;
}

// This thread's part of S(b), each term cut at kTile + 1, which is enough to compare and lets the
// block's sum fit 21 bits.
__device__ inline uint64_t own_halves(const uint64_t* gap, int b) {
  uint64_t sum = 0;
  for (int j = 0; j < kOwn; ++j) {
    const uint64_t q = gap[j] >> b, half = (q >> 1) + (q & 1);
    sum += half <= static_cast<uint64_t>(kTile) ? half : static_cast<uint64_t>(kTile) + 1;
  }
  return sum;
}

// Step 1: the smallest b with S(b) <= n. S(62) <= 1.
__device__ inline int choose_rice(const uint64_t* gap, int64_t n, uint64_t* warp_sums) {
  constexpr int kField = 21;
  int b = 0;
  for (int step = 16; step > 0; step /= 4) {
    const uint64_t own = own_halves(gap, b + step - 1) |
                         own_halves(gap, b + 2 * step - 1) << kField |
                         own_halves(gap, b + 3 * step - 1) << (2 * kField);
    const uint64_t sums = block_sum(own, warp_sums);
    int above = 0;
    for (int i = 0; i < 3; ++i)
      above += (sums >> (kField * i) & ((1u << kField) - 1)) > static_cast<uint64_t>(n);
    b += above * step;
  }
  return b;
}

__device__ inline uint8_t* table_entry(uint8_t* out, int64_t tile) {
  return out + kPackHead + kTableEntry * tile;
}

// Step 1.
__global__ void __launch_bounds__(kRiceThreads)
    rice_measure_kernel(Numbers numbers, int64_t most, int64_t numel, const int64_t* info,
                        uint8_t* out, int64_t bound, PackTotals* totals) {
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];
  const int64_t k = packed_count(info, most);
  const TileRange range = tile_range(k);
  PackTotals total = {};
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, k);
    uint64_t gap[kOwn], q = 0;
    const bool wrong = own_gaps(numbers, k, numel, tile * kTile, gap);
    const int b = choose_rice(gap, n, warp_sums);
    for (int j = 0; j < kOwn; ++j) q += gap[j] >> b;
    const uint64_t zeros = block_sum(q, warp_sums);
    total.remainder_bits += static_cast<uint64_t>(n * b);
    total.unary_bits += static_cast<uint64_t>(n) + zeros;
    total.wrong += __syncthreads_or(wrong) != 0;
    if (threadIdx.x < kTableEntry)
      table_entry(out, tile)[threadIdx.x] = static_cast<uint8_t>(
          threadIdx.x == 0 ? static_cast<uint64_t>(b) : zeros >> (8 * (threadIdx.x - 1)));
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
  // A word that holds the table's end is cleared byte by byte.
  const int64_t end = kPackHead + kTableEntry * ceil_div(k, kTile), words = ceil_div(end, 4);
  for (int64_t w = words + grid_first(); w < bound / 4; w += grid_stride())
    reinterpret_cast<uint32_t*>(out)[w] = 0;
  if (blockIdx.x == 0 && threadIdx.x < 4 * words - end) out[end + threadIdx.x] = 0;
}

// Step 2: `word(from)` has bits [from, from + 32) of this block's `bits` bits that begin at bit
// `at` of the stream, zeros before and after them.
template <class Word>
__device__ inline void put_bits(uint32_t* stream, int64_t at, int64_t bits, const Word& word) {
  if (bits == 0) return;
  const int64_t first = at >> 5, last = (at + bits - 1) >> 5;
  for (int64_t w = first + threadIdx.x; w <= last; w += kRiceThreads) {
    const uint32_t x = word(32 * w - at);
    if (w == first || w == last) {
      atomicOr(&stream[w], x);
    } else {
      stream[w] = x;
    }
  }
}

// 32 bits from bit `from` >= -31 on, of an array that ends with a word of zeros.
__device__ inline uint32_t word_at(const uint32_t* word, int64_t from) {
  const int64_t i = from >> 5;
  const int shift = static_cast<int>(from & 31);
  const uint32_t low = i < 0 ? 0 : word[i];
  return shift == 0 ? low : low >> shift | word[i + 1] << (32 - shift);
}

// Step 2.
__global__ void __launch_bounds__(kRiceThreads)
    rice_write_kernel(Numbers numbers, const float* value, int64_t most, const int64_t* info,
                      uint8_t* out, const PackTotals* totals) {
  constexpr int64_t kUnary = 2 * kUnaryWords, kSigns = kTile / 32;
  __shared__ uint64_t remainder[kTile];
  __shared__ uint32_t unary[kUnary + 1], signs[kSigns + 1];
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];

  PackTotals before = {}, all = {};
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kRiceThreads) {
    const PackTotals each = totals[i];
    all.remainder_bits += each.remainder_bits;
    all.unary_bits += each.unary_bits;
    all.wrong += each.wrong;
    if (i >= blockIdx.x) continue;
    before.remainder_bits += each.remainder_bits;
    before.unary_bits += each.unary_bits;
  }
  const bool wrong = block_sum(all.wrong, warp_sums) != 0;
  const int64_t k = wrong ? 0 : packed_count(info, most);
  const auto sum = [&](uint64_t x) { return static_cast<int64_t>(block_sum(x, warp_sums)); };
  const int64_t remainder_bytes = ceil_div(sum(all.remainder_bits), 8);
  const int64_t unary_bytes = ceil_div(sum(all.unary_bits), 8);
  const int64_t first_byte = kPackHead + kTableEntry * ceil_div(k, kTile);
  int64_t remainder_at = 8 * first_byte + sum(before.remainder_bits);
  int64_t unary_at = 8 * (first_byte + remainder_bytes) + sum(before.unary_bits);
  const int64_t sign_byte = first_byte + remainder_bytes + unary_bytes;

  if (blockIdx.x == 0 && threadIdx.x == 0) {
    int64_t* head = reinterpret_cast<int64_t*>(out);
    head[kPackBytes] = k == 0 ? 0 : sign_byte + ceil_div(k, 8) - kPackHead;
    head[kPackWrong] = wrong;
    for (int i = 0; i < kInfoSize; ++i) head[kPackInfo + i] = info[i];
  }

  uint32_t* stream = reinterpret_cast<uint32_t*>(out);
  const TileRange range = tile_range(k);
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, k), first = tile * kTile;
    const int b = table_entry(out, tile)[0];
    for (int i = threadIdx.x; i <= kUnary; i += kRiceThreads) unary[i] = 0;
    if (threadIdx.x == 0) signs[kSigns] = 0;
    uint64_t gap[kOwn], q = 0, zeros;
    own_gaps(numbers, k, INT64_MAX, first, gap);
    for (int j = 0; j < kOwn; ++j) q += gap[j] >> b;
    uint64_t place =
        block_exclusive_sum(q, warp_sums, &zeros);  // its barriers also end the clearing
    for (int j = 0; j < kOwn; ++j) {
      const int i = static_cast<int>(threadIdx.x) * kOwn + j;
      remainder[i] = gap[j] & ((uint64_t{1} << b) - 1);
      place += gap[j] >> b;
      if (i < n) atomicOr(&unary[(place + i) >> 5], 1u << ((place + i) & 31));
    }
    for (int i = threadIdx.x; i < kTile; i += kRiceThreads) {
      const bool minus = i < n && __float_as_int(value[first + i]) < 0;
      const unsigned word = __ballot_sync(kWholeWarp, minus);
      if (i % kWarp == 0) signs[i / kWarp] = word;
    }
    __syncthreads();
    const int64_t unary_bits = n + static_cast<int64_t>(zeros);
    put_bits(stream, remainder_at, n * b,
             [&](int64_t from) { return plane_word(remainder, n, b, from); });
    put_bits(stream, unary_at, unary_bits, [&](int64_t from) { return word_at(unary, from); });
    put_bits(stream, 8 * sign_byte + first, n, [&](int64_t from) { return word_at(signs, from); });
    remainder_at += n * b;
    unary_at += unary_bits;
    __syncthreads();
  }
}

// Where the streams of a message are, in bits.
struct Streams {
  BitStream bits;
  int64_t table, remainders, unary, signs;

  __device__ int rice(int64_t tile) const {
    return static_cast<int>(bits.read(table + 8 * kTableEntry * tile, 8));
  }
  __device__ int64_t zeros(int64_t tile) const {
    return static_cast<int64_t>(bits.read(table + 8 * kTableEntry * tile + 8, 16));
  }
};

// Step 3. What a tile adds to sums stays below 2^63 + 2^62 + 2^10, as b <= kUnpackRice, and what a
// block keeps of them does not exceed numel.
__global__ void __launch_bounds__(kRiceThreads)
    rice_read_kernel(Streams streams, int64_t k, int64_t numel, uint32_t scale, void* index,
                     bool wide, float* value, UnpackTotals* totals) {
  constexpr int kPiece = 16;
  static_assert(3 * kTile <= kPiece * kRiceThreads, "a piece of the unary part for each thread");
  __shared__ int place[kTile];
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];

  const TileRange range = tile_range(k);
  uint64_t bits_before = 0, zeros_before = 0;
  for (int64_t t = threadIdx.x; t < range.begin; t += kRiceThreads) {
    bits_before += static_cast<uint64_t>(kTile * streams.rice(t));
    zeros_before += static_cast<uint64_t>(streams.zeros(t));
  }
  int64_t remainder_at =
      streams.remainders + static_cast<int64_t>(block_sum(bits_before, warp_sums));
  int64_t unary_at = streams.unary + range.begin * kTile +
                     static_cast<int64_t>(block_sum(zeros_before, warp_sums));

  UnpackTotals total = {};
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, k), first = tile * kTile;
    const int b = streams.rice(tile);
    const int64_t zeros = streams.zeros(tile), unary_bits = n + zeros;
    // Rule 2. A hostile tile may have more ones than there are places.
    const int64_t from = static_cast<int64_t>(threadIdx.x) * kPiece, left = unary_bits - from;
    uint64_t piece = left <= 0 ? 0
                               : streams.bits.read(unary_at + from,
                                                   static_cast<int>(left < kPiece ? left : kPiece));
    uint64_t ones;
    int64_t at = static_cast<int64_t>(block_exclusive_sum(
        static_cast<uint64_t>(__popc(static_cast<unsigned>(piece))), warp_sums, &ones));
    for (; piece != 0 && at < kTile; ++at, piece &= piece - 1)
      place[at] = static_cast<int>(from) + __ffs(static_cast<int>(piece)) - 1;
    __syncthreads();
    if (b > kUnpackRice || zeros > 2 * n || ones != static_cast<uint64_t>(n) ||
        place[n - 1] != unary_bits - 1) {
      total.wrong = 1;  // the same for every thread
      break;
    }
    // The sums that prove b, and the scan of the remainders.
    uint64_t remainder[kOwn], own = 0, halves = 0, tops = 0;
    for (int j = 0; j < kOwn; ++j) {
      const int i = static_cast<int>(threadIdx.x) * kOwn + j;
      remainder[j] = 0;
      if (i >= n) continue;
      remainder[j] = streams.bits.read(remainder_at + i * b, b);
      own += remainder[j];
      halves += static_cast<uint64_t>(place[i] - (i > 0 ? place[i - 1] : -1)) >> 1;
      if (b > 0) tops += remainder[j] >> (b - 1);
    }
    uint64_t sum, offset = block_exclusive_sum(own, warp_sums, &sum);
    const uint64_t proof = block_sum(tops << 32 | halves, warp_sums), m = static_cast<uint64_t>(n);
    const uint64_t span = m + (static_cast<uint64_t>(zeros) << b) + sum;
    const bool canonical =
        (proof & 0xffffffffu) <= m && (b == 0 || static_cast<uint64_t>(zeros) + (proof >> 32) > m);
    if (!canonical || span > static_cast<uint64_t>(numel) - total.span) {
      total.wrong = 1;
      break;
    }
    for (int j = 0; j < kOwn; ++j) {
      const int i = static_cast<int>(threadIdx.x) * kOwn + j;
      if (i >= n) continue;
      offset += remainder[j];
      const uint64_t number =
          offset + static_cast<uint64_t>(i) + (static_cast<uint64_t>(place[i] - i) << b);
      if (wide) {
        static_cast<int64_t*>(index)[first + i] = static_cast<int64_t>(number);
      } else {
        static_cast<int32_t*>(index)[first + i] = static_cast<int32_t>(number);
      }
    }
    for (int64_t i = threadIdx.x; i < n; i += kRiceThreads) {
      const uint32_t sign = static_cast<uint32_t>(streams.bits.read(streams.signs + first + i, 1));
      value[first + i] = __int_as_float(static_cast<int>(scale | sign << 31));
    }
    total.span += span;
    remainder_at += n * b;
    unary_at += unary_bits;
    __syncthreads();  // place is free again
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = total;
}

// Step 4. The blocks' spans are at most numel each: 1024 of them do not wrap.
__global__ void __launch_bounds__(kRiceThreads)
    rice_place_kernel(int64_t k, int64_t numel, void* index, bool wide, const UnpackTotals* totals,
                      int64_t* wrong) {
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];
  uint64_t own = 0, own_all = 0, own_wrong = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kRiceThreads) {
    own_all += totals[i].span;
    own_wrong += totals[i].wrong;
    if (i < blockIdx.x) own += totals[i].span;
  }
  const uint64_t all = block_sum(own_all, warp_sums);
  const bool bad =
      block_sum(own_wrong, warp_sums) != 0 || all > static_cast<uint64_t>(numel);  // rule 4
  if (blockIdx.x == 0 && threadIdx.x == 0) *wrong = bad;
  if (bad) return;
  int64_t before = static_cast<int64_t>(block_sum(own, warp_sums));
  const TileRange range = tile_range(k);
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, k), first = tile * kTile;
    const int64_t span = Numbers{index, wide}.at(first + n - 1) + 1;
    __syncthreads();
    for (int64_t i = first + threadIdx.x; i < first + n; i += kRiceThreads) {
      if (wide) {
        static_cast<int64_t*>(index)[i] += before;
      } else {
        static_cast<int32_t*>(index)[i] += static_cast<int32_t>(before);
      }
    }
    before += span;
  }
}

}  // namespace gcext
