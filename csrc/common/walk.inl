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

void levels(const PacketView& p, const ValueCode& code, Span span, float* value) {
  const double steps = code.steps;
  p.with_index([&](auto* index) {
    for (int64_t at = span.from; at < span.until;) {
      int64_t bucket = 0, until = span.until;
      if (code.bucket > 0) {
        bucket = index[at] / code.bucket;
        const int64_t element = (bucket + 1) * code.bucket;
        if (index[until - 1] >= element)
          for (until = at + 1; index[until] < element;) ++until;
      }
      const double norm = static_cast<double>(code.norm[bucket]);
      const int16_t* level = code.level + at;
      float* to = value + (at - span.from);
      for (int64_t i = 0; i < until - at; ++i) to[i] = static_cast<float>(norm * level[i] / steps);
      at = until;
    }
  });
}

}  // namespace

const WalkTable walk_table = {pass, levels};

}  // namespace gcext::GCEXT_ISA
