// dct: some coefficients of the blocks' cosine transform; docs/wire-format.md has the fields.
//
//   | u8 edge | u8 inner | the fields of a sparse (2) or ternary (3) body, its indices
//   coefficients |
//
// inner 18 and 19: the indices in a block code, blocks.h.
//
// csrc/dct.h has the blocks, the numbers of their coefficients, and the transform.
#pragma once

#include <cstdint>

#include "lowrank.h"

namespace gcext::wire {

constexpr int64_t kMaxDctBlock = 64;

// All dimensions but the last by the last; 1 x n of one dimension, 1 x 1 of none.
Matrix dct_view(const int64_t* dims, int ndim);
Matrix dct_view(const Body& body);

void take_dct(Cursor* cursor, Body* body);

// The coefficients' sizes, once they are finite and not zero.
void check_dct(const Body& body, const Cursor& cursor);

template <class Index>
void put_dct(Message* message, const Matrix& view, const DctFields& fields, const Index* index,
             const float* value, int64_t k, float scale);

}  // namespace gcext::wire
