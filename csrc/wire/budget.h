// budget: what a message costs from its bytes to dense tensors, known from its structure alone, and
// the most of it that a reader allows.
//
// A few bytes can stand for any number of elements: a random support, codes of width 0, a sketch, a
// polar code whose frozen set has to be designed. So before the contents of a body are opened, its
// cost is added to that of the message, and a message beyond the budget is refused with the code
// "budget". The cost is a count, never a time: the same everywhere.
//
//   work     units of about a nanosecond of one core with AVX-512: elements, each by a weight of
//            what is done with it
//   memory   bytes, of all that is held at once: a bound from above
//
// docs/federated-server.md has the weights in words; tests/fuzz/cost_search.py looks for messages
// that cost more than they are counted for.
#pragma once

#include <cstdint>
#include <limits>
#include <set>
#include <tuple>

#include "frame.h"

namespace gcext::wire {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// A sum stays at the largest number where it would be above.
struct Cost {
  int64_t work = 0, memory = 0;

  // `count` times so much of each.
  void add(int64_t count, int64_t work_each, int64_t memory_each);
};

// What is allowed for a message of so many bytes whose tensors have so many elements, where the
// caller sets no other limit: enough for whatever honest encoders make of tensors of that shape.
Cost default_budget(int64_t numel, int64_t bytes);

// The elements of all shapes that a caller insists on.
int64_t expected_numel(const Expectation& expectation);

// Frozen sets of real values of blocks of 2^level at a tenth of the rate cost nothing from here on:
// a codec of this process makes them.
void expect_polar(int64_t level, int64_t tenth);

// Adds up a message's bodies.
class Meter {
 public:
  explicit Meter(const Cost& budget) : budget_(budget) {}

  // Adds a body that is no group. Throws DecodeError "budget" where the sum is above the budget.
  void add(const Body& body, const Cursor& cursor);
  const Cost& spent() const { return spent_; }

 private:
  void add_entries(const Body& body, const Cursor& cursor);
  void add_support(const Body& body);
  void add_polar(const Body& body);

  const Cost budget_;
  Cost spent_;
  // Frozen sets that were counted: block, rate (for real values its tenth), soft.
  std::set<std::tuple<int64_t, int64_t, bool>> designed_;
};

}  // namespace gcext::wire
