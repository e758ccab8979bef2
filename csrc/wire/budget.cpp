#include "budget.h"

#include <algorithm>
#include <atomic>
#include <string>

#include "../bits.h"
#include "dct.h"
#include "lowrank.h"
#include "sum.h"

namespace gcext::wire {
namespace {

// Work of an element. Found with tests/fuzz/cost_search.py on one core with AVX-512, rounded up.
constexpr int64_t kWrite = 1;     // a float32 of a dense tensor
constexpr int64_t kPair = 8;      // an index and a value decoded and added to a dense tensor
constexpr int64_t kDraw = 64;     // an index of a random support, sorted by marking
constexpr int64_t kSort = 80;     // where it is sorted by comparing instead
constexpr int64_t kMember = 24;   // of a merged packet
constexpr int64_t kLevel = 24;    // a level that is not 0
constexpr int64_t kPower = 8;     // a symbol of powers
constexpr int64_t kCode = 2;      // a fixed-width code, a sign
constexpr int64_t kUnion = 60;    // an element of a sum's term, sorted into the union of all
constexpr int64_t kRowQuery = 2;  // an element in a row of a sketch
// Of a cosine transform: an element of a block without a coefficient and of a full one, a
// coefficient that is alone in its column, a block, a coefficient of a block code.
constexpr int64_t kCosine = 2, kFullCosine = 12, kCoefficient = 600, kBlock = 100, kOfSet = 80;
constexpr int64_t kSymbol = 1;   // of a polar message
constexpr int64_t kRotated = 6;  // a value that is turned back
constexpr int64_t kIndex = 40;   // an index of a polar code, whose plan is made for each packet
constexpr int64_t kSoftIndex = 4500, kHardIndex = 4000;  // an index of a frozen set to be designed
constexpr int64_t kCrossover = 1'000'000;                // the design point of signs
constexpr int64_t kTensor = 4000;                        // a packet of its own: some objects

// The default budget.
constexpr int64_t kBaseWork = 2'200'000, kWorkPerByte = 1500, kWorkPerElement = 8;
constexpr int64_t kBaseMemory = 3 << 20, kMemoryPerByte = 512, kMemoryPerElement = 12;

int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? kUnlimited : product;
}

int64_t plus(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? kUnlimited : sum;
}

constexpr int64_t kPolarLevels = 21, kPolarTenths = 11, kLongestShipped = 1 << 13;
std::atomic<bool> expected_polar[kPolarLevels][kPolarTenths];

// The rate in tenths, rounded.
int64_t tenth_of(int64_t block, int64_t kept) { return (20 * kept + block) / (2 * block); }

// Whether gcext/polar has the set: in orders.bin, or in tables.json for 11 rates.
bool is_known(int64_t block, int64_t kept, bool soft) {
  if (kept == 0 || kept == block) return true;
  if (soft && expected_polar[__builtin_ctzll(static_cast<uint64_t>(block))][tenth_of(block, kept)])
    return true;
  if (block > kLongestShipped) return false;
  bool found = soft || 4 * kept == block || 4 * kept == 3 * block;
  for (int64_t tenths = 1; tenths <= 9; ++tenths)
    found = found || kept == (2 * tenths * block + 10) / 20;
  return found;
}

int64_t dct_blocks(const Body& body) {
  const Matrix view = dct_view(body);
  const int64_t edge = body.dct.block;
  const auto parts = [&](int64_t n) { return n / edge + (n % edge != 0); };  // n may be 2^63 - 1
  return times(parts(view.rows), parts(view.cols));
}

int64_t index_bytes(const Body& body) { return body.narrow() ? 4 : 8; }

}  // namespace

void Cost::add(int64_t count, int64_t work_each, int64_t memory_each) {
  work = plus(work, times(count, work_each));
  memory = plus(memory, times(count, memory_each));
}

Cost default_budget(int64_t numel, int64_t bytes) {
  Cost cost{kBaseWork, kBaseMemory};
  cost.add(numel, kWorkPerElement, kMemoryPerElement);
  cost.add(bytes, kWorkPerByte, kMemoryPerByte);
  return cost;
}

int64_t expected_numel(const Expectation& expectation) {
  int64_t total = 0;
  for (const std::vector<int64_t>& shape : expectation.shapes) {
    int64_t numel = 1;
    for (const int64_t dim : shape) numel = times(numel, std::max<int64_t>(dim, 0));
    total = plus(total, numel);
  }
  return total;
}

void expect_polar(int64_t level, int64_t tenth) {
  if (level >= 0 && level < kPolarLevels && tenth >= 0 && tenth < kPolarTenths)
    expected_polar[level][tenth] = true;
}

// The indices of the support.
void Meter::add_support(const Body& body) {
  const int64_t k = body.k;
  if (body.support == kIndices) spent_.add(k, kPair, index_bytes(body));
  if (body.support != kDrawn) return;
  spent_.add(k, kDraw, index_bytes(body));
  // Sorted by marking a bit an element, unless that is far more than the indices; support.cpp.
  if (body.numel / 64 <= times(k, 8))
    spent_.add(body.numel / 8, 1, 1);
  else
    spent_.add(k, kSort, 0);
}

void Meter::add_polar(const Body& body) {
  const PolarFields& polar = body.polar;
  if (body.k == 0) return;
  const int64_t block = polar.block, kept = polar.kept;
  spent_.add(1, kPolar, 0);
  spent_.add(polar.bytes, kCode, 1);
  spent_.add(block, kIndex, 48);
  int64_t symbols = body.k;
  if (polar.rotated) {
    const int64_t chunk = std::max<int64_t>(block, 1 << 16);
    // Whole chunks, and what is left in the least power of two.
    const int64_t rest = body.k % chunk;
    int64_t last = rest == 0 ? 0 : std::max<int64_t>(block, 64);
    while (last < rest) last *= 2;
    symbols = plus(body.k - rest, last);
    spent_.add(symbols, kRotated, 0);
    spent_.add(std::min(chunk, symbols), 0, 8);  // one that is turned back, twice
    spent_.add(body.k, 1, 4);                    // what is cut off the chunks
  }
  spent_.add(symbols / 8, kSymbol * 8, 1);
  spent_.add(symbols, kWrite, 4);
  if (is_known(block, kept, polar.soft)) return;
  const int64_t point = polar.soft ? tenth_of(block, kept) : kept;
  if (!designed_.emplace(block, point, polar.soft).second) return;
  spent_.add(block, polar.soft ? kSoftIndex : kHardIndex, 16);
  if (!polar.soft) spent_.add(1, kCrossover, 0);
}

// Indices and float32 values of what travels.
void Meter::add_entries(const Body& body, const Cursor& cursor) {
  const int64_t k = body.k, each = index_bytes(body), places = body.levels.places;
  switch (body.method) {
    case kSum: {
      int64_t listed = 0;
      bool everywhere = false;
      for_each_term(body, cursor, [&](const Body& term, const Cursor& at) {
        add_entries(term, at);
        if (term.support == kDrawn) spent_.add(term.k, kDraw, 0);  // again, for the union
        const bool level = term.method == kLevels || term.method == kLevels2;
        everywhere = everywhere || (term.support == kAll && !level);
        const int64_t sent = level ? term.levels.places : term.k;
        spent_.add(sent, kPair, 0);
        listed = plus(listed, sent);
      });
      if (everywhere)
        spent_.add(body.numel, kWrite, 4);
      else
        spent_.add(listed, kUnion, 48);
      return;
    }
    case kMerged:
      spent_.add(k, kPair, each + 4);
      spent_.add(body.members, kMember, 24);
      spent_.add(body.parts, kMember, 16);
      return;
    case kSketch:
      spent_.add(body.sketch.rows * body.sketch.cols, 1, 4);
      // The rows are sorted by exchanges, of neighbours: a row meets all others.
      spent_.add(k, body.sketch.rows * (kRowQuery + body.sketch.rows / 16), 4);
      return;
    case kLowRank: {
      const Matrix view = lowrank_view(body);
      const int64_t rank = body.lowrank.rank;
      spent_.add(view.rows, rank, 4 * rank);
      spent_.add(view.cols, rank, 8 * rank);
      spent_.add(k, kWrite + rank, 4);
      spent_.add(1, 0, int64_t{1} << 19);  // the part that is made at a time
      return;
    }
    case kDct:
      spent_.add(k, kPair + (body.dct.by_block ? kOfSet : 0), each + 4);
      spent_.add(body.numel, kCosine, 4);
      spent_.add(1, std::min(times(k, kCoefficient), times(body.numel, kFullCosine)), 0);
      spent_.add(dct_blocks(body), kBlock, 0);
      return;
    case kLevels:
    case kLevels2:
      add_support(body);
      spent_.add(places, kLevel, each + 6);
      if (body.support != kAll) spent_.add(places, kPair, 8 + each);  // indices of the support
      spent_.add(body.levels.norms, 1, 4);
      return;
    case kPolar:
      add_support(body);
      return add_polar(body);
    case kCodes:
      add_support(body);
      spent_.add(k, kCode, 4);
      spent_.add(body.codes.bytes, 1, 1);
      spent_.add(body.codes.scales, 1, 4);
      return;
    case kPowers:
      add_support(body);
      spent_.add(k, kWrite, 4);
      spent_.add(body.prefix.kinds > 0 ? k : 0, kPower, 2);
      return;
    case kSign:
      add_support(body);
      spent_.add(k, kCode, 4);
      spent_.add(plane_bytes(k, 1), 1, 1);
      return;
    default:  // dense, sparse, ternary, random
      add_support(body);
      spent_.add(k, kWrite, 4);
  }
}

void Meter::add(const Body& body, const Cursor& cursor) {
  spent_.add(1, kTensor, 2048);
  add_entries(body, cursor);
  const bool is_dense = body.support == kAll && body.method != kSum;
  spent_.add(body.numel, kWrite, is_dense && body.method != kDense ? 0 : 4);
  const auto above = [&](const char* what, int64_t got, int64_t most) {
    cursor.fail("budget", "method", body.start,
                std::string(what) + " must be at most " + std::to_string(most) + ", got " +
                    std::to_string(got) +
                    ". Refuse the message, or allow more with budget=gcext.Budget(..).");
  };
  if (spent_.work > budget_.work) above("work", spent_.work, budget_.work);
  if (spent_.memory > budget_.memory) above("memory", spent_.memory, budget_.memory);
}

}  // namespace gcext::wire
