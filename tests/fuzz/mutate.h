// Damages messages where it matters: field by field, as the decoder's own trace finds them.
#pragma once

#include "packets.h"

namespace gcext::fuzz {

// What becomes of the checksum of a changed message; repaired: of all but one in a hundred.
enum class Checksum { repaired, left };

// Changes one to four fields of a message, of whatever kind they are: counts, shapes, scales, tile
// tables, bits, padding, order. `other`: pieces may be taken from it. Never longer than kLongest.
void mutate(Random* random, Bytes* message, const Bytes& other, Checksum checksum);

constexpr size_t kLongest = 1 << 16;

}  // namespace gcext::fuzz
