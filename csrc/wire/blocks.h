// A block code: which coefficients of a matrix's blocks are sent; docs/wire-format.md, "Block
// code".
//
//   | u8 most | a word a block, pad |
//
// most is 1 to 8. A word numbers the sets of at most `most` of its block's coefficients, and so
// takes fewer bits than their gaps where most blocks have about as many: 44 where a section takes
// 48, for 4 of 4096.
#pragma once

#include <cstdint>

#include "lowrank.h"

namespace gcext::wire {

// Whether a block code holds `most` coefficients of each block of up to `edge` x `edge`.
bool fits_blocks(const Matrix& view, int64_t edge, int64_t most);

// Takes the block code of the body's k coefficients off the cursor: the words are there and padded
// with zeros, and stay closed. Costs no memory.
void take_blocks(Cursor* cursor, Body* body);

// Reads the words: k indices to index, or, where that is nullptr, to wide; to neither, checks them
// alone.
void read_blocks(const Body& body, const Cursor& cursor, int32_t* index, int64_t* wide);

// Throws PackError where the indices do not rise strictly below the matrix's size, or where a block
// has too many of them.
template <class Index>
void put_blocks(Message* message, const Matrix& view, int64_t edge, const Index* index, int64_t k);

}  // namespace gcext::wire
