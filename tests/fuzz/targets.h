// What is fuzzed. A target runs one input and holds the answers against one another; what no
// sanitizer sees but is wrong ends in broken().
#pragma once

#include <array>

#include "packets.h"

namespace gcext::fuzz {

// What was reached, for the report.
struct Counts {
  std::array<int64_t, kCodeCount> refused{};  // by code
  std::array<int64_t, 17> accepted{};         // by method
  int64_t operators = 0, operators_refused = 0;
};
Counts& counts();

// Verdict, expectation, and a second look at a message that has changed meanwhile. Then round trip
// and inspect.
void run_decode(const Bytes& message);

// pack(unpack(m)) == m, and no part of an accepted message is a message.
void run_round_trip(const Bytes& message);

// The packets of a group as one, and apart again.
void run_merge(const Bytes& message);

// The fields of any message, in order and without a gap.
void run_inspect(const Bytes& message);

// The CPU operators that aggregate packets, of packets and arguments that the bytes choose.
void run_aggregate(const Bytes& choices);

struct Target {
  const char* name;
  void (*run)(const Bytes& input);
  bool of_messages;  // or of arbitrary bytes
};
constexpr Target kTargets[] = {{"decode", run_decode, true},
                               {"round_trip", run_round_trip, true},
                               {"merge", run_merge, true},
                               {"inspect", run_inspect, true},
                               {"aggregate", run_aggregate, false}};

}  // namespace gcext::fuzz
