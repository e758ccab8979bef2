#include "make.h"

#include <algorithm>

#include "bits.h"
#include "dct.h"
#include "wire/coded.h"
#include "wire/codes.h"
#include "wire/dct.h"
#include "wire/levels.h"
#include "wire/levels2.h"
#include "wire/lowrank.h"
#include "wire/merged.h"
#include "wire/powers.h"
#include "wire/sketch.h"
#include "wire/sum.h"
#include "wire/windows.h"

namespace gcext::fuzz {

using namespace wire;

namespace {

constexpr Method kSingle[] = {kDense, kSparse, kTernary, kMerged,  kRandom, kSign, kLevels, kPolar,
                              kCodes, kPowers, kSum,     kLowRank, kSketch, kDct,  kLevels2};
constexpr int64_t kLong = kTilesAtOnce * kPrefixTile;
constexpr Method kTerms[] = {kDense,  kSparse, kTernary, kRandom, kSign,
                             kLevels, kPolar,  kCodes,   kPowers, kLevels2};

// The head that all terms of a sum share.
struct Head {
  int dtype;
  std::vector<int64_t> shape;
  int64_t numel;
};

int64_t count_of(const std::vector<int64_t>& shape) {
  __int128 product = 1;
  for (const int64_t dim : shape) {
    product *= dim;
    if (product > INT64_MAX) return -1;
  }
  return static_cast<int64_t>(product);
}

int64_t few(Random* random) {
  return random->once_in(40)   ? random->within(1000, 1100)
         : random->once_in(4)  ? random->below(4)
         : random->once_in(10) ? random->below(200)
                               : random->below(30);
}

// `dense`: of a packet that holds every element.
Head make_head(Random* random, bool dense) {
  Head head{static_cast<int>(random->below(4)), {}, 1};
  if (random->once_in(12)) return head;
  constexpr int64_t kHuge[] = {INT32_MAX,        int64_t{1} << 31,       (int64_t{1} << 31) + 1,
                               int64_t{1} << 45, (int64_t{1} << 62) + 3, INT64_MAX};
  if (!dense && random->once_in(6)) {
    head.shape.push_back(random->of(kHuge));
  } else if (random->once_in(3)) {
    for (int64_t i = random->within(1, 3); i > 0; --i) head.shape.push_back(random->below(12));
  } else {
    head.shape.push_back(few(random) * (dense ? 1 : random->within(1, 30)));
  }
  head.numel = count_of(head.shape);
  return head;
}

int64_t make_k(Random* random, int64_t numel) {
  return random->once_in(8) ? std::min<int64_t>(numel, 1500) : std::min(numel, few(random));
}

float positive(Random* random) {
  uint32_t word = gcext::bits_of(random->finite(random->once_in(3))) & 0x7fffffff;
  if (random->once_in(4)) word &= 0x7fffff;
  return float_of(word == 0 ? 1 : word);
}

std::vector<float> scales_of(Random* random, int64_t n, bool small) {
  std::vector<float> all(static_cast<size_t>(n));
  for (float& each : all) {
    each = random->once_in(8) ? 0 : positive(random);
    if (small && !(each <= 0x1p116f)) each = 1;
  }
  return all;
}

float* floats(Random* random, int64_t n, Arrays* arrays, bool zeros = true) {
  float* to = arrays->make<float>(n);
  const bool wild = random->once_in(3);
  for (int64_t i = 0; i < n; ++i) {
    to[i] = random->finite(wild);
    if (!zeros && to[i] == 0) to[i] = 0.5f;
  }
  return to;
}

uint8_t* plane(Random* random, int64_t bits, Arrays* arrays) {
  const int64_t bytes = plane_bytes(bits, 1);
  uint8_t* to = arrays->make<uint8_t>(bytes);
  for (int64_t i = 0; i < bytes; ++i) to[i] = static_cast<uint8_t>(random->next());
  if (bits % 8 != 0) to[bytes - 1] = static_cast<uint8_t>(to[bytes - 1] & ((1 << bits % 8) - 1));
  return to;
}

template <class Index>
Index* index_of(Random* random, int64_t k, int64_t numel, Arrays* arrays) {
  const std::vector<int64_t> wide = make_index(random, k, numel);
  Index* to = arrays->make<Index>(k);
  for (int64_t i = 0; i < k; ++i) to[i] = static_cast<Index>(wide[static_cast<size_t>(i)]);
  return to;
}

template <class Index>
void put_levels_of(Message* message, Method method, Random* random, int64_t k, Arrays* arrays) {
  constexpr int64_t kSteps[] = {1, 1, 2, 3, 7, 127, 255, 32767};
  const int64_t steps = random->of(kSteps);
  const int64_t bucket = k > 1 && random->once_in(3) ? random->within(k / 20 + 1, k - 1) : 0;
  // Now and then several tiles of a prefix code; kLong of them are read side by side.
  const bool long_one = k >= kLong ? random->once_in(2) : random->once_in(10);
  const int64_t most = std::min<int64_t>(k, long_one ? 20000 : 5000);
  const int64_t count = bucket == 0 ? std::min<int64_t>(k, 1) : k / bucket + (k % bucket != 0);
  const std::vector<float> norm = scales_of(random, count, false);
  int64_t places = random->once_in(3) && k == most ? k : random->below(most + 1);
  if (k > most) places = std::min<int64_t>(places, 40);  // far apart
  Index* at = index_of<Index>(random, places, k, arrays);
  int64_t kept = 0;  // levels of a norm that is not 0
  for (int64_t i = 0; i < places; ++i)
    if (norm[static_cast<size_t>(bucket == 0 ? 0 : static_cast<int64_t>(at[i]) / bucket)] > 0)
      at[kept++] = at[i];
  places = kept;
  int16_t* level = arrays->make<int16_t>(places);
  const bool low = random->once_in(2);
  for (int64_t i = 0; i < places; ++i) {
    const int64_t magnitude = random->within(1, low ? std::min<int64_t>(2, steps) : steps);
    level[i] = static_cast<int16_t>(random->once_in(2) ? -magnitude : magnitude);
  }
  float* norms = arrays->make<float>(count);
  std::copy(norm.begin(), norm.end(), norms);
  const LevelArrays fields{steps, bucket, norms, count, level, places};
  method == kLevels ? put_levels(message, k, fields, at, places)
                    : put_levels2(message, k, fields, at, places);
}

void put_powers_of(Message* message, Random* random, int64_t k, Arrays* arrays) {
  const bool none = random->once_in(8);
  int16_t* power = arrays->make<int16_t>(none ? 0 : k);
  const int64_t around = random->within(1, 277), spread = random->of({0, 1, 6, 300});
  const bool zeros = random->once_in(2);
  for (int64_t i = 0; i < k && !none; ++i) {
    int64_t p = std::clamp<int64_t>(around + random->within(-spread, spread), 1, 277);
    // Few of most: code words of very different lengths.
    if (spread == 6) p = std::min<int64_t>(277, 1 + __builtin_ctzll(random->next() | 1u << 20));
    if (zeros && random->once_in(3)) p = 0;
    power[i] = static_cast<int16_t>(random->once_in(2) ? -p : p);
  }
  put_powers(message, k, random->once_in(3) ? positive(random) : 1.5f, power, none ? 0 : k);
}

void put_codes_of(Message* message, Random* random, int64_t k, Arrays* arrays) {
  const auto table = static_cast<CodeTable>(random->below(kCodeTables));
  const bool narrow = table == CodeTable::kValues || table == CodeTable::kUniform;
  const int width = table == CodeTable::kValues     ? static_cast<int>(random->below(9))
                    : table == CodeTable::kUniform  ? static_cast<int>(random->within(1, 8))
                    : table == CodeTable::kDynamic8 ? 8
                                                    : 16;
  const bool buckets = k > 1 && random->once_in(3) && (narrow || width == 8);
  const int64_t bucket = buckets ? random->within(k / 8 + 1, k - 1) : 0;
  const int64_t scales = bucket_count(k, bucket) * floats_per_bucket(table, width);
  const int64_t bits = k * width, bytes = plane_bytes(bits, 1);
  uint8_t* codes = plane(random, bits, arrays);
  for (int64_t i = 1; i < bytes && width == 16; i += 2)
    codes[i] = static_cast<uint8_t>(codes[i] & 0xbf);  // finite
  float* scale = arrays->make<float>(scales);
  const float* values = floats(random, scales, arrays);
  for (int64_t i = 0; i < scales; ++i)
    scale[i] = table == CodeTable::kValues ? values[i] : positive(random);
  if (table == CodeTable::kUniform && random->once_in(3) && bucket == 0 && scales == 1) {
    scale[0] = 0;
    for (int64_t i = 0; i < bytes; ++i) codes[i] = 0;
    for (int64_t i = 0; i < k; ++i) {
      const int64_t bit = i * width + width - 1;
      codes[bit >> 3] = static_cast<uint8_t>(codes[bit >> 3] | 1 << (bit & 7));
    }
  }
  put_codes(message, k, {static_cast<int>(table), width, bucket, scale, scales, codes, bytes});
}

void put_polar_of(Message* message, Random* random, int64_t k, Arrays* arrays) {
  const int64_t block = int64_t{1} << (random->once_in(30) ? 20 : random->within(5, 8));
  const int64_t kept = random->once_in(3) ? 0 : random->below(std::min<int64_t>(block, 300) + 1);
  const bool rotated = random->once_in(2);
  const PolarSize size = polar_size(k, block, kept, rotated);
  if (size.scales > 4000 || size.bits > 100000) throw PackError("too large for a test");
  const std::vector<float> scale = scales_of(random, size.scales, rotated);
  float* own = arrays->make<float>(size.scales);
  std::copy(scale.begin(), scale.end(), own);
  const auto bits = static_cast<int64_t>(size.bits);
  put_polar(message, k,
            {block, kept, random->once_in(2), rotated, random->next(), own, size.scales,
             plane(random, bits, arrays), plane_bytes(bits, 1)});
}

template <class Index>
void put_coded_of(Message* message, Method method, Random* random, const Head& head,
                  Arrays* arrays) {
  const bool many = method == kPowers && head.numel < 40000;  // several tiles at once
  const bool all = (head.numel < 4000 || many) && random->once_in(2);
  Support support = all ? kAll : random->once_in(2) ? kIndices : kDrawn;
  if (method == kRandom || (method == kSign && support == kIndices)) support = kDrawn;
  int64_t k = support == kAll ? head.numel : make_k(random, head.numel);
  const bool levels = method == kLevels || method == kLevels2;
  if (support == kDrawn && levels && random->once_in(3)) k = head.numel;
  put_support(message, support, k, random->next());
  if (support == kIndices)
    message->own(pack_section(index_of<Index>(random, k, head.numel, arrays), k, head.numel));
  switch (method) {
    case kRandom:
      return put_random(message, k, floats(random, k, arrays), k);
    case kSign: {
      const int64_t bytes = plane_bytes(k, 1);
      uint8_t* bits = plane(random, k, arrays);
      const bool zero = random->once_in(5);
      if (zero && bytes > 0) std::memset(bits, 0, static_cast<size_t>(bytes));
      return put_sign(message, k, zero ? 0 : positive(random), bits, bytes);
    }
    case kLevels:
    case kLevels2:
      return put_levels_of<Index>(message, method, random, k, arrays);
    case kPowers:
      return put_powers_of(message, random, k, arrays);
    case kCodes:
      return put_codes_of(message, random, k, arrays);
    default:
      return put_polar_of(message, random, k, arrays);
  }
}

template <class Index>
void put_ternary_of(Message* message, Random* random, const Head& head, bool small,
                    Arrays* arrays) {
  const int64_t k = make_k(random, head.numel);
  float scale = k > 0 ? positive(random) : 0;
  if (small && !(scale <= 0x1p116f)) scale = 1;
  float* value = arrays->make<float>(k);
  for (int64_t i = 0; i < k; ++i) value[i] = random->once_in(2) ? -scale : scale;
  put_ternary(message, head.numel, index_of<Index>(random, k, head.numel, arrays), value, k, scale);
}

template <class Index>
void put_merged_of(Message* message, Random* random, const Head& head, Arrays* arrays) {
  const int64_t parts = random->once_in(30) ? 70 : random->within(2, 5);
  std::vector<Part> part;
  const bool wild = random->once_in(3);
  for (int64_t j = 0; j < parts; ++j) {
    const int64_t k = std::min<int64_t>(make_k(random, head.numel), 400);
    const float scale = k == 0 ? 0 : wild ? positive(random) : 0.25f * static_cast<float>(j + 1);
    float* value = arrays->make<float>(k);
    for (int64_t i = 0; i < k; ++i) value[i] = random->once_in(2) ? -scale : scale;
    part.push_back({index_of<Index>(random, k, std::min(head.numel, 3 * k + 1), arrays),
                    sizeof(Index) == 4, value, k, scale});
  }
  std::vector<int64_t> index;
  std::vector<float> value;
  Members members;
  merge(part, head.numel, &index, &value, &members);
  put_merged(message, head.numel, index.data(), static_cast<int64_t>(index.size()), members);
}

// Some coefficients of each block, k in all.
template <class Index>
Index* index_by_block(Random* random, const Matrix& view, int64_t edge, int64_t* k,
                      Arrays* arrays) {
  const DctGrid grid(view.rows, view.cols, edge);
  if (grid.blocks() > 2000) throw PackError("too large for a test");
  const int64_t most = random->within(1, 8);
  Index* to = arrays->make<Index>(most * grid.blocks());
  *k = 0;
  for (int64_t b = 0; b < grid.blocks(); ++b) {
    const DctBlock block = grid.block(b);
    const int64_t size = int64_t{1} * block.h * block.w;
    for (const int64_t place : make_index(random, std::min(random->below(most + 1), size), size))
      to[(*k)++] = static_cast<Index>(block.number + place);
  }
  return to;
}

void put_any(Message* message, Method method, const Head& head, Random* random, Arrays* arrays);

template <class Index>
void put_fields(Message* message, Method method, const Head& head, Random* random, Arrays* arrays) {
  switch (method) {
    case kDense:
      return put_dense(message, head.numel, floats(random, head.numel, arrays), head.numel);
    case kSparse: {
      const int64_t k = make_k(random, head.numel);
      return put_sparse(message, head.numel, index_of<Index>(random, k, head.numel, arrays),
                        floats(random, k, arrays, false), k);
    }
    case kTernary:
      return put_ternary_of<Index>(message, random, head, false, arrays);
    case kMerged:
      return put_merged_of<Index>(message, random, head, arrays);
    case kSum: {
      const int64_t terms = random->once_in(20) ? 64 : random->within(2, 4);
      message->varint(static_cast<uint64_t>(terms));
      for (int64_t i = 0; i < terms; ++i)
        put_any(message, random->of(kTerms), head, random, arrays);
      return;
    }
    case kSketch: {
      const int64_t rows = random->within(1, random->once_in(9) ? 64 : 4);
      const int64_t cols = random->within(1, 20), cells = rows * cols;
      return put_sketch(message,
                        {rows, cols, random->next(), floats(random, cells, arrays), cells});
    }
    case kLowRank: {
      int64_t rows = head.shape.empty() ? 1 : head.shape[0], cols = 1;
      for (size_t i = 1; i < head.shape.size(); ++i) cols *= head.shape[i];
      const int64_t rank = random->below(std::min<int64_t>(4, std::min(rows, cols)) + 1);
      if (rows > 5000 && rank > 0) throw PackError("too large for a test");
      float* left = floats(random, rows * rank, arrays);
      for (int64_t i = 0; i < rows * rank; ++i) left[i] = std::clamp(left[i], -2.f, 2.f);
      float* right = floats(random, cols * rank, arrays);
      for (int64_t i = 0; i < cols * rank; ++i) right[i] = std::clamp(right[i], -0x1p95f, 0x1p95f);
      return put_lowrank(message, head.shape, rank, {left, rows * rank, right, cols * rank});
    }
    case kDct: {
      const DctFields fields{random->within(1, 64), random->once_in(2), random->once_in(2)};
      const Matrix view = dct_view(head.shape.data(), static_cast<int>(head.shape.size()));
      int64_t k = make_k(random, head.numel);
      const Index* index = fields.by_block
                               ? index_by_block<Index>(random, view, fields.block, &k, arrays)
                               : index_of<Index>(random, k, head.numel, arrays);
      const float scale = k > 0 ? std::min(positive(random), 0x1p116f) : 0;
      float* value = floats(random, k, arrays, false);
      for (int64_t i = 0; i < k; ++i)
        value[i] = fields.ternary ? (random->once_in(2) ? -scale : scale)
                                  : std::clamp(value[i], -0x1p116f, 0x1p116f);
      return put_dct(message, view, fields, index, value, k, fields.ternary ? scale : 0);
    }
    default:
      return put_coded_of<Index>(message, method, random, head, arrays);
  }
}

void put_any(Message* message, Method method, const Head& head, Random* random, Arrays* arrays) {
  put_head(message, method, head.dtype, head.shape);
  head.numel <= INT32_MAX ? put_fields<int32_t>(message, method, head, random, arrays)
                          : put_fields<int64_t>(message, method, head, random, arrays);
}

Head head_for(Method method, Random* random) {
  Head head = make_head(random, method == kDense);
  if (method == kSum && head.numel > 300) head = {head.dtype, {7}, 7};
  if ((method == kPowers || method == kLevels2) && random->once_in(200))
    head = {head.dtype, {kLong + random->below(3000)}, 0}, head.numel = head.shape[0];
  while (head.numel < 0 || (method == kDense && head.numel > 3000)) head = make_head(random, true);
  return head;
}

// Draws again where a writer refuses.
template <class Body>
Bytes until_written(const Body& body) {
  for (int tries = 0; tries < 20; ++tries) {
    try {
      Message message;
      Arrays arrays;
      body(&message, &arrays);
      return written(message);
    } catch (const PackError&) {
    }
  }
  return sealed(nullptr, 0);
}

}  // namespace

std::vector<int64_t> make_index(Random* random, int64_t k, int64_t numel) {
  std::vector<int64_t> index;
  const int64_t span = random->once_in(3) ? numel : std::min(numel, 4 * k + random->below(100));
  const bool runs = random->once_in(3);
  for (int64_t i = 0, next = 0; i < k; ++i) {
    const int64_t spare = span - next - (k - i);  // that may be skipped
    if (spare > 0 && !(runs && !random->once_in(8)))
      next += random->below(std::min(spare / 2, spare / (k - i)) * 2 + 1);
    index.push_back(next++);
  }
  return index;
}

Bytes make_message(Random* random) {
  return until_written([&](Message* message, Arrays* arrays) {
    if (!random->once_in(8)) {
      const Method method = random->of(kSingle);
      return put_any(message, method, head_for(method, random), random, arrays);
    }
    const int64_t members = random->once_in(20) ? 100 : random->within(1, 4);
    message->byte(kGroup);
    message->varint(static_cast<uint64_t>(members));
    for (int64_t i = 0; i < members; ++i) {
      const Method method = random->of(kSingle);
      put_any(message, method, head_for(method, random), random, arrays);
    }
  });
}

Bytes make_ternaries(Random* random) {
  return until_written([&](Message* message, Arrays* arrays) {
    const Head head = make_head(random, false);
    if (head.numel < 0) throw PackError("no such shape");
    const int64_t members = random->within(2, 6);
    message->byte(kGroup);
    message->varint(static_cast<uint64_t>(members));
    for (int64_t i = 0; i < members; ++i) put_any(message, kTernary, head, random, arrays);
  });
}

}  // namespace gcext::fuzz
