#include "lender.h"

#include <algorithm>
#include <cstring>

namespace gcext::wire {
namespace {

Lender current;

}  // namespace

void set_lender(const Lender& lender) { current = lender; }

const Lender& lender() { return current; }

void copy_bytes(const void* from, int64_t bytes, void* to) {
  constexpr int64_t kPiece = int64_t{1} << 20;  // worth a thread
  if (bytes == 0) return;                       // there may be no memory either
  const int64_t parts = part_count(bytes, kPiece);
  run_parts(parts, [&](int64_t part) {
    const int64_t first = bytes / parts * part,
                  last = part + 1 == parts ? bytes : bytes / parts * (part + 1);
    std::memcpy(static_cast<char*>(to) + first, static_cast<const char*>(from) + first,
                static_cast<size_t>(last - first));
  });
}

int64_t part_count(int64_t n, int64_t grain) {
  if (current.threads == nullptr || n < 2 * grain) return 1;
  return std::max<int64_t>(1, std::min(current.threads(), n / grain));
}

}  // namespace gcext::wire
