// Packets as the server's kernels (combine, gram) see them, and the one check of what an operator
// was given.
#pragma once

#include "combine.h"
#include "stable.h"

namespace gcext {

// Raises unless every packet has float32 values and, unless dense, as many strictly rising indices
// in [0, numel): after that no kernel can write out of bounds, and no two of its threads to one
// element.
std::vector<PacketView> view_packets(const char* op, const std::vector<Tensor>& index,
                                     const std::vector<Tensor>& value, int64_t numel);

// The first entry of the packet whose index is not below `element`.
int64_t first_entry(const PacketView& packet, int64_t element);

}  // namespace gcext
