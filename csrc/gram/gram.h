// gram: all pairwise dot products of m packets, without decompressing them.
//
//   two ternary packets   dot = (mu_i*mu_j)*(double)c      c = agreements - disagreements of their
//                                                          signs, an integer; c_ii = k_i
//   two of sign bits      the same                         c = n - 2*popcount(bits_i ^ bits_j)
//   any other pair        dot = the float64 sum of the products x_ie*y_je (each exact), see below
//
// So dots of such packets are exact up to two roundings, and their signs are exact: the branch
// `dot < 0` of the projection falls the same way everywhere.
//
// c: elements are cut into tiles, and threads take ranges of them, each with all the counts of its
// own; integers add up to the same in any order. Only elements with two entries or more matter, and
// each takes the cheaper of two ways, which never shows in the result:
//
//   1. Tally: how many packets have an entry at each element of the tile. Where there are `many`,
//      the element gets a column, numbered as they come.
//
//   columns   2. Packets become two planes, one bit a column, of several tiles one after the other:
//                  there  0 1 0 0 1 1 0 0     an entry
//                  minus  0 0 0 0 1 0 0 0     a negative one
//             3. When the planes are full: c of two packets is popcount(common) -
//                2*popcount(common & (minus_i ^ minus_j)), common = there_i & there_j, for a block
//                of pairs at once. A column costs m^2/2 bits, whatever is in it. From 64 packets
//                on, a processor that multiplies tiles of bytes does that instead (gram_amx.h).
//   meetings  4. The running sum of the tally gives each other element a list of its own.
//             5. Packet by packet, each entry meets those already on its element's list, one update
//                of c a meeting, and joins them. An element with e entries costs e^2/2 updates.
//
// Other pairs: tiles of kGramTile elements, tiles in at most kGramChunks chunks, by numel alone.
//
//   6. The products of a tile are summed over eight lanes, element e in lane e mod 8, each in order
//      of e; the lanes of a tile are added as ((0+4)+(2+6)) + ((1+5)+(3+7)), tiles to their chunk
//      and chunks to the dot in order, all from +0. Products with zero change nothing, so the bits
//      do not depend on how a packet codes its zeros nor on the order of the packets.
//   7. Two dense packets: blocks of pairs, a register of lanes each. Otherwise one of the two is
//      spread over a dense tile, and the other's entries are looked up in it.
#pragma once

#include <cstdint>

#include "../common/isa.h"
#include "../common/packet_view.h"
#include "../common/scalar.h"

namespace gcext {

// Steps 1 to 5: elements of a tile, and columns that the planes hold. 2 KiB of planes a
// packet: those of a thousand fit a second-level cache of 2 MiB.
constexpr int64_t kCountTile = 8192;
constexpr int64_t kCountWords = kCountTile / 64;
constexpr int64_t kWordStep = 8;  // agree takes so many words at a time, a register

// A block of pairs: rows times columns of the matrix.
constexpr int64_t kRows = 2, kColumns = 4;

// Steps 6 and 7.
constexpr int64_t kGramTile = 16384;
// Bounds the memory, 8 bytes a chunk and pair, and the number of threads that can help.
constexpr int64_t kGramChunks = 32;

struct alignas(64) Planes {
  uint64_t there[kCountWords];
  uint64_t minus[kCountWords];
};

// What is known of the elements of a tile; all zeros before the tally.
struct Tally {
  uint16_t number[kCountTile];  // of entries
  uint16_t column[kCountTile];  // counted from 1; 0: none
  uint16_t columns;             // how many
};

// An entry on the list of its element: its packet and its sign in the lowest bit.
using Met = uint16_t;
constexpr int64_t kMostPackets = 1 << 15;  // that it can name

// The list of an element is met[first[element]] to met[next[element] - 1]; an element without one
// has 0 and 0.
struct Lists {
  const uint32_t* first;
  uint32_t* next;
  Met* met;
};

// Entries [from, until) of a packet lie within the tile whose first element is `begin`.
struct GramTable {
  double word_ns;  // what agree takes on one core for a word of a pair, about
  // Step 1: adds the entries of a packet.
  void (*tally)(const PacketView& packet, Span span, int64_t begin, uint16_t many, Tally* tally);
  // Step 2: words [word, word + words) of the planes. `scratch`, kMarkBytes, is all zeros before
  // and after.
  void (*mark)(const PacketView& packet, Span span, int64_t begin, const uint16_t* column,
               int64_t word, int64_t words, uint8_t* scratch, Planes* planes);
  // Step 3: c of row r and column c into count[kColumns*r + c], over the first `words` words.
  void (*agree)(const Planes* const* rows, const Planes* const* columns, int64_t words,
                int64_t* count);
  // Step 5: c into row[the other packet].
  void (*meet)(const PacketView& packet, int64_t place, Span span, int64_t begin,
               const Lists& lists, int64_t* row);

  // Step 7. x[index - begin] = value, or 0 where `clear`.
  void (*spread)(const PacketView& packet, Span span, int64_t begin, bool clear, float* x);
  double (*dot_entries)(const PacketView& packet, Span span, int64_t begin, const float* x);
  // The dot of row r and column c, of one tile, into dot[kColumns*r + c].
  void (*dot_dense)(const float* const* rows, const float* const* columns, int64_t n, double* dot);
};

// A byte a column, behind a line that takes the entries of elements without one.
constexpr int64_t kNoColumn = 63, kMarkBytes = 64 + kCountTile;

GCEXT_DECLARE_TABLE(GramTable, gram_table)

}  // namespace gcext
