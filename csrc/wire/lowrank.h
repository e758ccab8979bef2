// lowrank: a matrix as the product of two thin ones; docs/wire-format.md has the fields.
//
//   value(i, j) = sum over r of left[i][r] * right[j][r]    float32, rising r, each rounded
#pragma once

#include <cstdint>
#include <vector>

#include "frame.h"

namespace gcext::wire {

// A tensor as a matrix.
struct Matrix {
  int64_t rows, cols;
};

// The first dimension by all others; n x 1 of one dimension, 1 x 1 of none.
Matrix lowrank_view(const Body& body);

void take_lowrank(Cursor* cursor, Body* body);
void check_lowrank(const Body& body, const Cursor& cursor);

struct Factors {
  const float* left;
  int64_t lefts;
  const float* right;
  int64_t rights;
};
void put_lowrank(Message* message, const std::vector<int64_t>& shape, int64_t rank,
                 const Factors& factors);

}  // namespace gcext::wire
