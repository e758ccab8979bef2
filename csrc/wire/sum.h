// sum: several packets of one tensor in one, whose values are added up.
//
//   | count varint | count bodies, "terms": each of the sum's dtype and shape |
//
// An element's value is 0 plus its values in the terms that hold it, in their order, each addition
// rounded to float32. That it is finite is ensured without decoding: every term has a bound, the
// largest magnitude that it may hold, and these, added in the same way, must stay finite. Rounding
// is monotone, so no sum of values is beyond that of the bounds.
#pragma once

#include <cstdint>
#include <string>

#include "frame.h"

namespace gcext::wire {

constexpr int64_t kMaxTerms = 64;  // so that a few bytes cost no many small objects

// Whether packets of a method can be terms: those of one tensor whose bound is known.
bool can_be_term(uint8_t method);

// Takes the fields after the head off the cursor: the count, and the structure of every term.
void take_sum(Cursor* cursor, Body* body);

// The contents of every term, and their bounds.
void check_sum(const Body& body, const Cursor& cursor);

// Calls visit(term, its cursor) for each term of a sum that was taken.
template <class Visit>
void for_each_term(const Body& body, const Cursor& cursor, const Visit& visit) {
  Cursor next = cursor.from(body.terms);
  for (int64_t i = 0; i < body.members; ++i) {
    next.scope(cursor.scope() + "terms[" + std::to_string(i) + "].");
    const Body term = take_body(&next, true);
    visit(term, next);
  }
}

}  // namespace gcext::wire
