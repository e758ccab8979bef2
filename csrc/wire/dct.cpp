#include "dct.h"

#include <string>

#include "fields.h"

namespace gcext::wire {
namespace {

// Of a coefficient: 2^116. The inverse of a block makes values up to 2^7 times that.
constexpr uint32_t kLargest = kLargestRotated;

int64_t first_above(const uint8_t* values, int64_t n) {
  int64_t i = 0;
  while (i < n && (load_word(values + 4 * i) & 0x7fffffff) <= kLargest) ++i;
  return i;
}

}  // namespace

Matrix dct_view(const Body& body) {
  Matrix view{1, body.ndim > 0 ? body.dims[body.ndim - 1] : 1};
  for (int i = 0; i + 1 < body.ndim; ++i) view.rows *= body.dims[i];
  return view;
}

void take_dct(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  body->dct.block = cursor->byte("edge");
  if (body->dct.block < 1 || body->dct.block > kMaxDctBlock)
    cursor->fail("edge", "edge", place,
                 "must be in [1, 64], got " + std::to_string(body->dct.block) + ".");
  const uint8_t inner = cursor->byte("inner");
  if (inner != kSparse && inner != kTernary)
    cursor->fail("method", "inner", place + 1,
                 "must be 2 or 3, got " + std::to_string(inner) + ".");
  body->dct.ternary = inner == kTernary;
  if (body->dct.ternary)
    take_ternary(cursor, body, kLargest);
  else
    take_sparse(cursor, body);
}

void check_dct(const Body& body, const Cursor& cursor) {
  if (body.dct.ternary) return;
  const int64_t bad = first_above(body.values, body.k);
  if (bad < body.k)
    cursor.fail("value", "values", body.values + 4 * bad, "must be at most 2^116 in magnitude.");
}

template <class Index>
void put_dct(Message* message, int64_t numel, const DctFields& fields, const Index* index,
             const float* value, int64_t k, float scale) {
  if (fields.block < 1 || fields.block > kMaxDctBlock)
    throw PackError("pack: block must be in [1, 64], got " + std::to_string(fields.block) + ".");
  const auto large = [](const std::string& got) {
    throw PackError("pack: coefficients of a dct packet must be at most 2^116 in magnitude, got " +
                    got + ". Scale the tensor down.");
  };
  message->byte(static_cast<uint8_t>(fields.block));
  message->byte(fields.ternary ? kTernary : kSparse);
  if (fields.ternary) {
    if (bits_of(scale) > kLargest && bits_of(scale) < kInfinity) large(std::to_string(scale));
    put_ternary(message, numel, index, value, k, scale);
    return;
  }
  const int64_t bad = first_above(reinterpret_cast<const uint8_t*>(value), k);
  if (bad < k) large("another at place " + std::to_string(bad));
  put_sparse(message, numel, index, value, k);
}

template void put_dct(Message*, int64_t, const DctFields&, const int32_t*, const float*, int64_t,
                      float);
template void put_dct(Message*, int64_t, const DctFields&, const int64_t*, const float*, int64_t,
                      float);

}  // namespace gcext::wire
