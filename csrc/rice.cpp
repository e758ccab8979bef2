// rice: tiles. Narrow tiles go to the instruction set's bodies, the rare wide ones (a gap or an
// offset of 2^32 and more) through the plain 64-bit code below.
#include "rice.h"

#include <cstring>

#include "bits.h"

namespace gcext {
namespace {

const RiceTable& table() {
  static const RiceTable& chosen = GCEXT_TABLE(rice_table);
  return chosen;
}

// sum of gap >> b
uint64_t shifted_sum(const Gaps& gaps, int b) {
  uint64_t sum = 0;
  if (gaps.narrow)
    for (int64_t i = 0; i < gaps.n; ++i) sum += b > 31 ? 0 : gaps.gap32[i] >> b;
  else
    for (int64_t i = 0; i < gaps.n; ++i) sum += gaps.gap64[i] >> b;
  return sum;
}

uint64_t half_sum(const Gaps& gaps, int b) {
  if (gaps.narrow) return b > 31 ? 0 : table().half_sum(gaps.gap32, gaps.n, b);
  uint64_t sum = 0;
  for (int64_t i = 0; i < gaps.n; ++i) {
    const uint64_t q = gaps.gap64[i] >> b;
    sum += (q >> 1) + (q & 1);
    if (sum > static_cast<uint64_t>(gaps.n)) break;  // enough to compare, and no wrap
  }
  return sum;
}

// One bit at a time is enough for wide tiles: at least 32 bits of remainder pay for each gap.
void write_wide(const Gaps& gaps, int b, uint8_t* remainders, uint64_t* unary) {
  memset(remainders, 0, static_cast<size_t>(plane_bytes(gaps.n, b)));
  uint64_t place = 0, bit = 0;
  for (int64_t i = 0; i < gaps.n; ++i, ++place) {
    place += gaps.gap64[i] >> b;
    unary[place >> 6] |= uint64_t{1} << (place & 63);
    for (int j = 0; j < b; ++j, ++bit)
      remainders[bit >> 3] |= static_cast<uint8_t>((gaps.gap64[i] >> j & 1) << (bit & 7));
  }
}

uint64_t read_wide(const uint8_t* plane, uint64_t bit, int b) {
  uint64_t value = 0;
  for (int j = 0; j < b; ++j, ++bit)
    value |= static_cast<uint64_t>(plane[bit >> 3] >> (bit & 7) & 1) << j;
  return value;
}

bool parameter_is_canonical(RiceTile tile, int64_t n, uint64_t halves, uint64_t tops) {
  const uint64_t m = static_cast<uint64_t>(n);
  return halves <= m && (tile.b == 0 || tile.zeros + tops > m);
}

template <class Index>
RiceStatus finish_wide(RiceTile tile, int64_t n, const uint8_t* remainders, const uint32_t* place,
                       int64_t previous, int64_t limit, Index* index) {
  uint64_t halves = 0, tops = 0, before = 0;
  __extension__ unsigned __int128 at = static_cast<uint64_t>(previous + 1);
  bool beyond = false;
  for (int64_t i = 0; i < n; ++i, ++at) {
    const uint64_t zeros = place[i] - static_cast<uint64_t>(i), q = zeros - before;
    const uint64_t r = read_wide(remainders, static_cast<uint64_t>(i) * tile.b, tile.b);
    before = zeros;
    halves += (q + 1) >> 1;
    if (tile.b > 0) tops += r >> (tile.b - 1);
    __extension__ unsigned __int128 high = q;
    at += (high << tile.b) + r;  // below 2^63 + kTile * 2^75: no wrap
    beyond |= at >= static_cast<uint64_t>(limit);
    index[i] = static_cast<Index>(static_cast<uint64_t>(at));
  }
  if (!parameter_is_canonical(tile, n, halves, tops)) return RiceStatus::parameter;
  return beyond ? RiceStatus::range : RiceStatus::ok;
}

}  // namespace

bool rice_gaps(const int32_t* index, int64_t n, int64_t previous, Gaps* gaps) {
  gaps->n = n;
  gaps->narrow = true;
  return table().gaps(index, n, previous + 1, gaps->gap32);
}

bool rice_gaps(const int64_t* index, int64_t n, int64_t previous, Gaps* gaps) {
  gaps->n = n;
  uint64_t any = 0, fell = index[0] > previous ? 0 : 1;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t low = i == 0 ? previous : index[i - 1];
    const uint64_t gap = static_cast<uint64_t>(index[i]) - static_cast<uint64_t>(low) - 1;
    fell |= static_cast<uint64_t>(index[i] <= low);
    gaps->gap64[i] = gap;
    any |= gap;
  }
  gaps->narrow = any >> 32 == 0;
  if (gaps->narrow)
    for (int64_t i = 0; i < n; ++i) gaps->gap32[i] = static_cast<uint32_t>(gaps->gap64[i]);
  return fell == 0;
}

RiceTile rice_choose(const Gaps& gaps) {
  const uint64_t m = static_cast<uint64_t>(gaps.n);
  // S never rises, so walk down from the first guess while S stays within m, else up. The guess:
  // the mean gap, which is within two steps of the answer on a random support.
  const uint64_t sum = shifted_sum(gaps, 0);  // below 2^63: one index's span
  int b = 0;
  while (b < kMaxRice && sum >> (b + 1) >= m) ++b;
  if (half_sum(gaps, b) <= m) {
    while (b > 0 && half_sum(gaps, b - 1) <= m) --b;
  } else {
    do ++b;
    while (half_sum(gaps, b) > m);
  }
  return {static_cast<uint8_t>(b), static_cast<uint16_t>(shifted_sum(gaps, b))};
}

void rice_write(const Gaps& gaps, RiceTile tile, uint8_t* remainders, uint64_t* unary) {
  memset(unary, 0, kUnaryWords * sizeof *unary);
  if (!gaps.narrow) {
    write_wide(gaps, tile.b, remainders, unary);
    return;
  }
  uint32_t remainder[kTile];
  table().split(gaps.gap32, gaps.n, tile.b, remainder, unary);
  bits().pack(remainder, gaps.n, tile.b, remainders);
}

template <class Index>
RiceStatus rice_read(RiceTile tile, int64_t n, const uint8_t* remainders, const uint64_t* unary,
                     int64_t previous, int64_t limit, Index* index) {
  const int64_t bits_here = n + tile.zeros;
  uint32_t place[64 * kUnaryWords + 16];  // a hostile tile may be all ones
  const int64_t count = table().ones(unary, (bits_here + 63) / 64, place);
  if (count != n || place[n - 1] != bits_here - 1) return RiceStatus::unary;

  // The largest offset a hostile tile can reach: n - 1 + (zeros << b) + n * (2^b - 1).
  const bool narrow =
      tile.b < 32 && (static_cast<uint64_t>(bits_here) << tile.b) + kTile < uint64_t{1} << 32;
  if (!narrow) return finish_wide(tile, n, remainders, place, previous, limit, index);

  uint32_t remainder[kTile], offset[kTile], halves, tops;
  bits().unpack(remainders, n, tile.b, remainder);
  table().join(place, remainder, n, tile.b, offset, &halves, &tops);
  if (!parameter_is_canonical(tile, n, halves, tops)) return RiceStatus::parameter;
  const int64_t base = previous + 1;
  if (offset[n - 1] >= limit - base) return RiceStatus::range;  // offsets rise: the last decides
  for (int64_t i = 0; i < n; ++i) index[i] = static_cast<Index>(base + offset[i]);
  return RiceStatus::ok;
}

template RiceStatus rice_read(RiceTile, int64_t, const uint8_t*, const uint64_t*, int64_t, int64_t,
                              int32_t*);
template RiceStatus rice_read(RiceTile, int64_t, const uint8_t*, const uint64_t*, int64_t, int64_t,
                              int64_t*);

}  // namespace gcext
