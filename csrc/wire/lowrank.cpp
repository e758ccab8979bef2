#include "lowrank.h"

#include <algorithm>
#include <string>

#include "fields.h"

namespace gcext::wire {
namespace {

// Of left and right, as bits: 2 and 2^95. So a sum of up to 2^31 products stays finite.
constexpr uint32_t kLargestLeft = 0x40000000, kLargestRight = 0x6f000000;

// The first of n float32 whose magnitude is above `largest`; n if none.
int64_t first_above(const uint8_t* values, int64_t n, uint32_t largest) {
  int64_t i = 0;
  while (i < n && (load_word(values + 4 * i) & 0x7fffffff) <= largest) ++i;
  return i;
}

Matrix view_of(const int64_t* dims, int64_t ndim) {
  Matrix view{ndim > 0 ? dims[0] : 1, 1};
  for (int64_t i = 1; i < ndim; ++i) view.cols *= dims[i];
  return view;
}

void check_factor(const Cursor& cursor, const uint8_t* values, int64_t n, uint32_t largest,
                  const char* field, const char* text) {
  const int64_t bad = first_above(values, n, largest);
  if (bad < n) cursor.fail("value", field, values + 4 * bad, text);
}

void put_factor(Message* message, const float* value, int64_t count, int64_t want, uint32_t largest,
                const char* what, const char* text) {
  check_count("lowrank", what, count, want);
  const int64_t bad = first_above(reinterpret_cast<const uint8_t*>(value), count, largest);
  if (bad < count)
    throw PackError(std::string("pack: ") + what + " of a lowrank packet must be " + text +
                    ", got another at place " + std::to_string(bad) + ".");
  put_floats(message, value, count);
}

}  // namespace

Matrix lowrank_view(const Body& body) { return view_of(body.dims, body.ndim); }

void take_lowrank(Cursor* cursor, Body* body) {
  body->support = kAll;
  body->k = body->numel;
  const Matrix view = lowrank_view(*body);
  const uint8_t* place = cursor->at();
  const int64_t rank = body->lowrank.rank = cursor->varint("rank");
  if (rank > std::min(view.rows, view.cols))
    cursor->fail("rank", "rank", place,
                 "must be at most that of a " + std::to_string(view.rows) + " x " +
                     std::to_string(view.cols) + " matrix, got " + std::to_string(rank) + ".");
  body->lowrank.left = take_floats(cursor, view.rows * rank, "left");
  body->lowrank.right = take_floats(cursor, view.cols * rank, "right");
}

void check_lowrank(const Body& body, const Cursor& cursor) {
  const Matrix view = lowrank_view(body);
  const int64_t rank = body.lowrank.rank;
  check_factor(cursor, body.lowrank.left, view.rows * rank, kLargestLeft, "left",
               "must be in [-2, 2].");
  check_factor(cursor, body.lowrank.right, view.cols * rank, kLargestRight, "right",
               "must be in [-2^95, 2^95].");
}

void put_lowrank(Message* message, const std::vector<int64_t>& shape, int64_t rank,
                 const Factors& factors) {
  const Matrix view = view_of(shape.data(), static_cast<int64_t>(shape.size()));
  if (rank < 0 || rank > std::min(view.rows, view.cols))
    throw PackError("pack: rank must be in [0, " + std::to_string(std::min(view.rows, view.cols)) +
                    "], got " + std::to_string(rank) + ".");
  message->varint(static_cast<uint64_t>(rank));
  put_factor(message, factors.left, factors.lefts, view.rows * rank, kLargestLeft, "left",
             "in [-2, 2]");
  put_factor(message, factors.right, factors.rights, view.cols * rank, kLargestRight, "right",
             "in [-2^95, 2^95]");
}

}  // namespace gcext::wire
