// merged: J ternary packets of one shape in one, without loss.
//
// Where packets overlap, an index travels once. Which packets hold the i-th index of the union is
// row i of a (k, J) matrix, and its non-zeros ("members") travel as a section of their own:
//
//   packets   a: +2 at 3, -2 at 5     b: +7 at 3         J = 2, scales 2 7
//   union     3 5                     k = 2
//   members   0*2+0  0*2+1  1*2+0     places 0 1 2 in [0, k*J), signs + + -
//   values    2+7  -2                 the exact sum, rounded once to float32
//
// Rows clustered by how many packets hold an element make the gaps of the places cluster too, and
// the Rice parameter of each tile follows.
#pragma once

#include <cstdint>
#include <vector>

#include "frame.h"

namespace gcext::wire {

// The members of a merged body.
struct Members {
  std::vector<float> scale;       // a part's scale; 0 exactly where it is empty
  std::vector<int64_t> place;     // element * J + part, rising; every element has one at least
  std::vector<uint8_t> negative;  // 1 where the member is -scale

  int64_t parts() const { return static_cast<int64_t>(scale.size()); }
};

// Takes the fields of a merged body off the cursor.
void take_merged(Cursor* cursor, Body* body);

// Reads the members and checks every rule that binds them. Where they are not null, `value` gets k
// sums and `members` everything.
void read_members(const Body& body, const Cursor& cursor, float* value, Members* members);

// One ternary packet to merge.
struct Part {
  const void* index;  // int32 or int64
  bool narrow;        // int32
  const float* value;
  int64_t k;
  float scale;
};

// Merges the parts: fills the union's indices and values, and the members. Throws PackError.
void merge(const std::vector<Part>& parts, int64_t numel, std::vector<int64_t>* index,
           std::vector<float>* value, Members* members);

// Appends the fields of a merged body after its head.
template <class Index>
void put_merged(Message* message, int64_t numel, const Index* index, int64_t k,
                const Members& members);

// Writes part j's elements to index[j] and value[j]; each must hold the members of that part.
template <class Index>
void unmerge(const Members& members, const Index* union_index, std::vector<Index*> index,
             std::vector<float*> value);

}  // namespace gcext::wire
