#include "dct.h"

#include <string>

#include "blocks.h"
#include "fields.h"

namespace gcext::wire {
namespace {

// Of a coefficient: 2^116. The inverse of a block makes values up to 2^7 times that.
constexpr uint32_t kLargest = kLargestRotated;

constexpr uint8_t kByBlock = 0x10;  // of inner

int64_t first_above(const uint8_t* values, int64_t n) {
  int64_t i = 0;
  while (i < n && (load_word(values + 4 * i) & 0x7fffffff) <= kLargest) ++i;
  return i;
}

}  // namespace

Matrix dct_view(const int64_t* dims, int ndim) {
  Matrix view{1, ndim > 0 ? dims[ndim - 1] : 1};
  for (int i = 0; i + 1 < ndim; ++i) view.rows *= dims[i];
  return view;
}

Matrix dct_view(const Body& body) { return dct_view(body.dims, body.ndim); }

void take_dct(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  body->dct.block = cursor->byte("edge");
  if (body->dct.block < 1 || body->dct.block > kMaxDctBlock)
    cursor->fail("edge", "edge", place,
                 "must be in [1, 64], got " + std::to_string(body->dct.block) + ".");
  const uint8_t inner = cursor->byte("inner");
  const int own = inner & ~kByBlock;
  if (own != kSparse && own != kTernary)
    cursor->fail("method", "inner", place + 1,
                 "must be 2, 3, 18 or 19, got " + std::to_string(inner) + ".");
  body->dct.ternary = own == kTernary;
  body->dct.by_block = own != inner;
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
void put_dct(Message* message, const Matrix& view, const DctFields& fields, const Index* index,
             const float* value, int64_t k, float scale) {
  if (fields.block < 1 || fields.block > kMaxDctBlock)
    throw PackError("pack: block must be in [1, 64], got " + std::to_string(fields.block) + ".");
  const auto large = [](const std::string& got) {
    throw PackError("pack: coefficients of a dct packet must be at most 2^116 in magnitude, got " +
                    got + ". Scale the tensor down.");
  };
  message->byte(static_cast<uint8_t>(fields.block));
  message->byte(static_cast<uint8_t>((fields.ternary ? kTernary : kSparse) |
                                     (fields.by_block ? kByBlock : 0)));
  if (fields.ternary) {
    if (bits_of(scale) > kLargest && bits_of(scale) < kInfinity) large(std::to_string(scale));
    if (!fields.by_block)
      return put_ternary(message, view.rows * view.cols, index, value, k, scale);
    put_ternary_head(message, k, scale);
    put_blocks(message, view, fields.block, index, k);
    return put_signs(message, value, k);
  }
  const int64_t bad = first_above(reinterpret_cast<const uint8_t*>(value), k);
  if (bad < k) large("another at place " + std::to_string(bad));
  if (!fields.by_block) return put_sparse(message, view.rows * view.cols, index, value, k);
  check_sent(value, k);
  message->varint(static_cast<uint64_t>(k));
  put_blocks(message, view, fields.block, index, k);
  put_floats(message, value, k);
}

template void put_dct(Message*, const Matrix&, const DctFields&, const int32_t*, const float*,
                      int64_t, float);
template void put_dct(Message*, const Matrix&, const DctFields&, const int64_t*, const float*,
                      int64_t, float);

}  // namespace gcext::wire
