// rice on CUDA, steps 1 and 2 of rice.cuh: measure and write.
#pragma once

#include "rice.cuh"

namespace gcext {

// How many pairs of the item there are.
__device__ inline int64_t packed_count(const PackItem& item) {
  if (item.info == nullptr) return item.k;
  if (item.info[kInfoStatus] != kSelectOk) return 0;
  return item.info[kInfoCount] < item.k ? item.info[kInfoCount] : item.k;
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

// Step 1.
__global__ void __launch_bounds__(kRiceThreads)
    rice_measure_kernel(Chunk<PackItem> chunk, uint8_t* out, PackTotals* totals) {
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];
  const RicePart<PackItem> part = part_of(chunk);
  const Numbers numbers{part.item.index, part.item.wide};
  uint8_t* table = out + part.item.at;
  const int64_t k = packed_count(part.item);
  const TileRange range = tile_range(part, k);
  PackTotals total = {};
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, k);
    uint64_t gap[kOwn], q = 0;
    const bool wrong = own_gaps(numbers, k, part.item.numel, tile * kTile, gap);
    const int b = choose_rice(gap, n, warp_sums);
    for (int j = 0; j < kOwn; ++j) q += gap[j] >> b;
    const uint64_t zeros = block_sum(q, warp_sums);
    total.remainder_bits += static_cast<uint64_t>(n * b);
    total.unary_bits += static_cast<uint64_t>(n) + zeros;
    total.wrong += __syncthreads_or(wrong) != 0;
    if (threadIdx.x < kTableEntry)
      table[kTableEntry * tile + threadIdx.x] = static_cast<uint8_t>(
          threadIdx.x == 0 ? static_cast<uint64_t>(b) : zeros >> (8 * (threadIdx.x - 1)));
  }
  if (threadIdx.x == 0) totals[part.first + part.block] = total;
  // A word that holds the table's end is cleared byte by byte.
  const int64_t end = kTableEntry * ceil_div(k, kTile), words = ceil_div(end, 4);
  for (int64_t w = words + part.block * kRiceThreads + threadIdx.x; w < part.item.bytes / 4;
       w += part.blocks * kRiceThreads)
    reinterpret_cast<uint32_t*>(table)[w] = 0;
  if (part.block == 0 && threadIdx.x < 4 * words - end) table[end + threadIdx.x] = 0;
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

// Byte i of words of which others are changed at the same time, by atomics: those and a volatile
// read are no race.
__device__ inline int byte_at(const uint32_t* word, int64_t i) {
  const volatile uint32_t* const at = word + (i >> 2);
  return static_cast<int>(*at >> (8 * (i & 3)) & 0xff);
}

// Step 2.
__global__ void __launch_bounds__(kRiceThreads)
    rice_write_kernel(Chunk<PackItem> chunk, uint8_t* out, const PackTotals* totals) {
  constexpr int64_t kUnary = 2 * kUnaryWords, kSigns = kTile / 32;
  __shared__ uint64_t remainder[kTile];
  __shared__ uint32_t unary[kUnary + 1], signs[kSigns + 1];
  __shared__ uint64_t warp_sums[kRiceThreads / kWarp];

  const RicePart<PackItem> part = part_of(chunk);
  PackTotals before = {}, all = {};
  for (int64_t i = threadIdx.x; i < part.blocks; i += kRiceThreads) {
    const PackTotals each = totals[part.first + i];
    all.remainder_bits += each.remainder_bits;
    all.unary_bits += each.unary_bits;
    all.wrong += each.wrong;
    if (i >= part.block) continue;
    before.remainder_bits += each.remainder_bits;
    before.unary_bits += each.unary_bits;
  }
  const bool wrong = block_sum(all.wrong, warp_sums) != 0;
  const int64_t count = packed_count(part.item), k = wrong ? 0 : count;
  const auto sum = [&](uint64_t x) { return static_cast<int64_t>(block_sum(x, warp_sums)); };
  const int64_t remainder_bytes = ceil_div(sum(all.remainder_bits), 8);
  const int64_t unary_bytes = ceil_div(sum(all.unary_bits), 8);
  const int64_t first_byte = kTableEntry * ceil_div(k, kTile);
  int64_t remainder_at = 8 * first_byte + sum(before.remainder_bits);
  int64_t unary_at = 8 * (first_byte + remainder_bytes) + sum(before.unary_bits);
  const int64_t sign_byte = first_byte + remainder_bytes + unary_bytes;

  if (part.block == 0 && threadIdx.x == 0) {
    int64_t* head = reinterpret_cast<int64_t*>(out + part.item.head);
    head[kPackAt] = part.item.at;
    head[kPackBytes] = k == 0 ? 0 : sign_byte + ceil_div(k, 8);
    head[kPackWrong] = wrong;
    for (int i = 0; i < kInfoSize; ++i)
      head[kPackInfo + i] = part.item.info != nullptr ? part.item.info[i] : 0;
    if (part.item.info == nullptr) head[kPackInfo + kInfoCount] = count;
  }

  const Numbers numbers{part.item.index, part.item.wide};
  uint32_t* stream = reinterpret_cast<uint32_t*>(out + part.item.at);
  const TileRange range = tile_range(part, k);
  for (int64_t tile = range.begin; tile < range.end; ++tile) {
    const int64_t n = tile_numbers(tile, k), first = tile * kTile;
    const int b = byte_at(stream, kTableEntry * tile);
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
      const bool minus = i < n && __float_as_int(part.item.value[first + i]) < 0;
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

}  // namespace gcext
