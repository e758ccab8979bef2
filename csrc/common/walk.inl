// walk: the bodies, compiled once per instruction set. See packet_view.h.
#include <cstdint>

#include "packet_view.h"

namespace gcext::GCEXT_ISA {
namespace {

// Blocks without an early end vectorise. Where indices rise, those not above `last` come first, so
// that their number is where the tile ends; a block that reaches beyond it is checked whole, too.
template <class Int>
int64_t pass_at(const Int* index, int64_t at, int64_t k, Int last, bool* rises) {
  constexpr int64_t kBlock = 32;
  bool fell = at < k && at > 0 && index[at] <= index[at - 1];
  while (k - at > kBlock) {
    const Int* block = index + at;
    Int inside = 0, falls = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      inside += block[i] <= last;
      falls |= block[i + 1] <= block[i];
    }
    fell |= falls != 0;
    at += inside;
    if (inside < kBlock) {
      *rises &= !fell;
      return at;
    }
  }
  for (; at < k && index[at] <= last; ++at) fell |= at + 1 < k && index[at + 1] <= index[at];
  *rises &= !fell;
  return at;
}

int64_t pass(const PacketView& p, int64_t at, int64_t end, bool* rises) {
  if (p.wide) return pass_at(p.index64(), at, p.k, end - 1, rises);
  const int32_t last = end > INT32_MAX ? INT32_MAX : static_cast<int32_t>(end - 1);
  return pass_at(p.index32(), at, p.k, last, rises);
}

}  // namespace

const WalkTable walk_table = {pass};

}  // namespace gcext::GCEXT_ISA
