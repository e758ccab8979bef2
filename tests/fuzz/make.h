// Random packets, made by the packet writers themselves: valid but for their rarest.
#pragma once

#include "packets.h"

namespace gcext::fuzz {

// A whole message: one of every method, groups and sums of several.
Bytes make_message(Random* random);

// A group of ternary packets of one shape, as merge takes them.
Bytes make_ternaries(Random* random);

// k indices that rise below numel; runs and clusters as well as scattered ones.
std::vector<int64_t> make_index(Random* random, int64_t k, int64_t numel);

}  // namespace gcext::fuzz
