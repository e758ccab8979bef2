// vote: the bodies, compiled once per instruction set. See vote.h for the steps.
#include <cstring>

#include "vote.h"

namespace gcext::GCEXT_ISA {
namespace {

// Steps 1 and 2.
void add(VotePlane* a, VotePlane* b, int64_t levels, VotePlane* counter) {
  for (int64_t w = 0; w < kVoteWords; ++w) {
    const uint64_t x = a->word[w], y = b->word[w], half = x ^ y, old = counter->word[w];
    counter->word[w] = old ^ half;
    a->word[w] = (x & y) | (old & half);
  }
  for (int64_t level = 1; level < levels; ++level) {
    uint64_t* sum = counter[level].word;
    for (int64_t w = 0; w < kVoteWords; ++w) {
      const uint64_t carry = a->word[w], old = sum[w];
      sum[w] = old ^ carry;
      a->word[w] = old & carry;
    }
  }
}

int64_t mark(const PacketView& packet, int64_t at, int64_t begin, VotePlane* there,
             VotePlane* minus) {
  const PacketView p = packet;  // in registers: the stores below cannot change it
  return p.with_index([&](auto* index) {
    for (; at < p.k; ++at) {
      const int64_t place = index[at] - begin;
      if (place >= kVoteTile) break;
      const uint64_t bit = uint64_t{1} << (place & 63);
      if (p.value[at] != 0) there->word[place >> 6] |= bit;
      if (p.value[at] < 0) minus->word[place >> 6] |= bit;
    }
    return at;
  });
}

// Step 3. Bit l of 2*minus is bit l - 1 of minus.
void decide(const VotePlane* minus, const VotePlane* there, int64_t levels, VotePlane* above,
            VotePlane* equal) {
  const uint64_t* top = minus[levels - 1].word;
  for (int64_t w = 0; w < kVoteWords; ++w) {
    above->word[w] = top[w];
    equal->word[w] = ~top[w];
  }
  for (int64_t level = levels - 1; level >= 0; --level) {
    const uint64_t* votes = there[level].word;
    for (int64_t w = 0; w < kVoteWords; ++w) {
      const uint64_t twice = level > 0 ? minus[level - 1].word[w] : 0;
      above->word[w] |= equal->word[w] & twice & ~votes[w];
      equal->word[w] &= ~(twice ^ votes[w]);
    }
  }
}

// In halves: shifts of 32 bits by different counts are one instruction from AVX2 on.
void spread(const VotePlane& above, const VotePlane& equal, int64_t n, float scale, float* out) {
  uint32_t plus, value[64];
  memcpy(&plus, &scale, 4);
  for (int64_t e = 0; e < n; e += 64) {
    for (int64_t half = 0; half < 64; half += 32) {
      const uint32_t minus = static_cast<uint32_t>(above.word[e / 64] >> half);
      const uint32_t tie = static_cast<uint32_t>(equal.word[e / 64] >> half);
      for (int i = 0; i < 32; ++i)
        value[half + i] = (plus ^ (minus >> i) << 31) & ((tie >> i & 1) - 1);
    }
    memcpy(out + e, value, static_cast<size_t>(n - e < 64 ? n - e : 64) * 4);
  }
}

}  // namespace

const VoteTable vote_table = {add, mark, decide, spread};

}  // namespace gcext::GCEXT_ISA
