#include "codes.h"

#include <algorithm>
#include <cstring>

#include "bits.h"
#include "common/arguments.h"
#include "common/pool.h"

namespace gcext {
namespace {

constexpr int64_t kBlock = 1024;  // codes unpacked at a time, a multiple of 8
constexpr int64_t kGrain = 32;    // blocks that are worth a thread

// The values of `n` codes of bucket `j`. `own`: a uniform bucket's values, made where they serve
// enough codes and kept while `made` is j.
void decode(const CodesTable& table, const Coded& coded, int64_t j, const uint32_t* code, int64_t n,
            float* own, int64_t* made, float* value) {
  const int64_t size = int64_t{1} << coded.width;
  if (coded.table == CodeTable::kValues)
    return table.look_up(code, n, coded.scale + j * size, coded.width, value);
  if (coded.table == CodeTable::kDynamic8) return table.dynamic(code, n, coded.scale[j], value);
  if (*made != j && n < 2 * size) return table.uniform(code, n, coded.scale[j], coded.width, value);
  if (*made != j) {
    uint32_t every[1 << kMostTableBits];
    for (int64_t c = 0; c < size; ++c) every[c] = static_cast<uint32_t>(c);
    table.uniform(every, size, coded.scale[j], coded.width, own);
    *made = j;
  }
  table.look_up(code, n, own, coded.width, value);
}

}  // namespace

void decode_codes(const Coded& coded, int64_t from, int64_t until, float* value) {
  const CodesTable& table = GCEXT_TABLE(codes_table);
  if (coded.width > kMostTableBits) {
    const auto convert = coded.table == CodeTable::kFloat16 ? table.halves : table.bfloats;
    return convert(coded.bits + 2 * from, until - from, value);
  }
  alignas(64) uint32_t code[kBlock];
  alignas(64) float own[1 << kMostTableBits];
  int64_t made = -1;
  for (int64_t at = from; at < until; at += kBlock) {
    const int64_t n = std::min(kBlock, until - at), first = at / 8 * coded.width;
    const uint8_t* in = coded.bits + first;
    uint8_t tail[kBlock * kMostTableBits / 8 + kBitsSlack] = {};
    if (coded.bytes - first < kBlock / 8 * coded.width + kBitsSlack) {
      const auto bytes = static_cast<size_t>(plane_bytes(n, coded.width));
      if (bytes > 0) std::memcpy(tail, in, bytes);  // of width 0 there is no plane, nor a place
      in = tail;
    }
    bits().unpack(in, n, coded.width, code);
    for (int64_t i = 0; i < n;) {
      const int64_t j = coded.bucket == 0 ? 0 : (at + i) / coded.bucket;
      const int64_t left = coded.bucket == 0 ? n - i : (j + 1) * coded.bucket - at - i;
      const int64_t run = std::min(left, n - i);
      decode(table, coded, j, code + i, run, own, &made, value + (at - from) + i);
      i += run;
    }
  }
}

namespace {

Tensor code_values(const Tensor& bits, const Tensor& scales, int64_t n, int64_t table,
                   int64_t width, int64_t bucket) {
  check_code_values(bits, scales, n, table, width, bucket);
  const Coded coded{
      bits.const_data_ptr<uint8_t>(), scales.const_data_ptr<float>(), bits.numel(), bucket,
      static_cast<CodeTable>(table),  static_cast<int>(width)};
  return fill_tiles(n, kBlock, kGrain, [&](int64_t first, int64_t last, float* value) {
    const int64_t from = first * kBlock;
    decode_codes(coded, from, std::min(last * kBlock, n), value + from);
  });
}

}  // namespace

GCEXT_OPERATOR(CPU, code_values,
               "(Tensor bits, Tensor scales, int n, int table, int width, int bucket) -> Tensor")

}  // namespace gcext
