// The frame and the bodies of format version 1; docs/wire-format.md is the norm.
//
//   +-------------+---------+--------------------+-------------------+
//   | 89 47 43 58 | u8 01   | body               | XXH3-64, 8 bytes  |
//   +-------------+---------+--------------------+-------------------+
//   body = u8 method | u8 dtype << 4 | ndim | ndim varint dims | the method's fields
//   group body = u8 method | varint count | count bodies
//   sum body = method, type and dims | varint count | count bodies
//
// Reading is two steps. take_body lays a Body over the bytes: sizes, ranges, padding. check_body
// opens every stream and allocates nothing in proportion to k.
// Only then does read_* fill arrays, of k elements.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../codes.h"
#include "cursor.h"
#include "message.h"
#include "section.h"

namespace gcext::wire {

constexpr uint8_t kMagic[4] = {0x89, 'G', 'C', 'X'};
constexpr uint8_t kVersion = 1;
constexpr int64_t kHeadBytes = 5, kChecksumBytes = 8;
constexpr int kMaxDims = 15;
constexpr int64_t kMaxParts = 4096;  // of a merged body: its scales stay within 16 KiB

enum Method : uint8_t {
  kDense = 1,
  kSparse,
  kTernary,
  kMerged,
  kGroup,
  kRandom,  // from here on: a support and what its elements became, coded.h
  kSign,
  kLevels,
  kPolar,
  kCodes,
  kPowers,        // powers.h
  kSum = 12,      // several packets of one tensor, sum.h
  kLowRank = 13,  // lowrank.h
  kSketch = 14,   // without a support, sketch.h
  kDct = 15,      // dct.h
  kLevels2 = 16,  // levels2.h
};

constexpr int kDtypes = 4;  // float32, float16, bfloat16, float64: the source's, for information

// Which elements travel, where a method leaves it open.
enum Support : uint8_t { kAll, kIndices, kDrawn };

// The fields of a levels body after its support; the sign bits are the body's.
struct LevelFields {
  int64_t steps = 0, bucket = 0;
  int64_t norms = 0;
  const uint8_t* norm = nullptr;  // norms float32
  int64_t places = 0;             // levels that are not 0
  Section zeros_or_places;        // the fewer: of levels that are 0, or not, among the k elements
  Section numbers;                // running sums of the levels, less one; empty where steps is 1
};

// The fields of a polar body after its support.
struct PolarFields {
  int64_t block = 0, kept = 0;
  bool soft = false, rotated = false;
  uint64_t seed = 0;
  int64_t scales = 0;
  const uint8_t* scale = nullptr;  // scales float32
  const uint8_t* message = nullptr;
  int64_t bytes = 0;  // of the message
};

// A prefix code and its stream, prefix.h.
struct Prefix {
  int64_t symbols = 0;               // coded in the stream
  int64_t alphabet = 0;              // all are below
  int64_t kinds = 0;                 // different ones
  Section used;                      // which
  const uint8_t* lengths = nullptr;  // of their words, 4 bits each
  const uint8_t* sizes = nullptr;    // 3 bytes a tile: its bits
  const uint8_t* stream = nullptr;
  int64_t bits = 0;  // of the stream
};

// The fields of a codes body after its support.
struct CodeFields {
  CodeTable table = CodeTable::kValues;
  int width = 0;
  int64_t bucket = 0;
  int64_t scales = 0;
  const uint8_t* scale = nullptr;  // scales float32
  const uint8_t* bits = nullptr;   // k codes
  int64_t bytes = 0;               // of these
};

// The fields of a sketch body.
struct SketchFields {
  int64_t rows = 0, cols = 0;
  uint64_t seed = 0;
  const uint8_t* cell = nullptr;  // rows * cols float32
};

// The fields of a lowrank body.
struct LowRankFields {
  int64_t rank = 0;
  const uint8_t* left = nullptr;   // rows*rank float32
  const uint8_t* right = nullptr;  // cols*rank float32
};

// The fields of a dct body before those of its coefficients, which stand in for those of a sparse
// or ternary body.
struct DctFields {
  int64_t block = 0;
  bool ternary = false;
  bool by_block = false;           // the indices in a block code, blocks.h, not in a section
  int most = 0;                    // coefficients of a block
  const uint8_t* words = nullptr;  // a number a block
};

// A body laid over the bytes of a message; it owns nothing.
struct Body {
  uint8_t method = 0;
  const uint8_t* start = nullptr;
  // group: bodies, and nothing below holds for it; merged: see there; sum: its terms
  int64_t members = 0;

  uint8_t dtype = 0;
  int ndim = 0;
  int64_t dims[kMaxDims] = {};
  int64_t numel = 0;
  int64_t k = 0;                    // elements of the support: numel for dense
  float scale = 0;                  // ternary, sign, powers; 0 where a ternary body has k = 0
  Section index;                    // of the support's k elements; empty where they need none
  const uint8_t* signs = nullptr;   // ternary, sign: k bits; merged: members; levels: of its places
  const uint8_t* values = nullptr;  // dense, sparse, random: k little-endian float32

  // Merged: member m says that one of the parts holds one of the k elements.
  int64_t parts = 0;
  const uint8_t* scales = nullptr;  // parts float32
  Section rows;                     // places element*parts + part of the members; signs are theirs

  Support support = kIndices;
  uint64_t seed = 0;  // of a drawn support
  LevelFields levels;
  PolarFields polar;
  Prefix prefix;  // powers, levels2
  CodeFields codes;
  LowRankFields lowrank;
  DctFields dct;
  const uint8_t* terms = nullptr;  // sum: the first term's body
  SketchFields sketch;

  bool narrow() const { return numel <= INT32_MAX; }
};

// In an expected shape, a dimension that does not fit 64 bits: no message has it.
constexpr int64_t kNoDim = std::numeric_limits<int64_t>::min();

// What the caller insists on: one shape, or the shapes of a group's members.
struct Expectation {
  bool group = false;
  std::vector<std::vector<int64_t>> shapes;
};

// Checks length, magic and version; the checksum is the caller's, over all but the last 8 bytes.
// `trace`: gets every field that is read off the cursor; null: none.
Cursor open_frame(const uint8_t* message, int64_t bytes, std::vector<Field>* trace = nullptr);

// The fields of a sparse or ternary body after its head. largest: of a scale, as bits.
void take_sparse(Cursor* cursor, Body* body);
void take_ternary(Cursor* cursor, Body* body, uint32_t largest);

// Takes one body off the cursor; of a group only its method and count. `member` forbids a group.
Body take_body(Cursor* cursor, bool member);

// Opens all streams of a body that is not a group, keeping nothing.
void check_body(const Body& body, const Cursor& cursor);

// Whether a body is one that stays closed, for a device to open: ternary, with elements.
inline bool can_stay_closed(const Body& body) { return body.method == kTernary && body.k > 0; }

class Meter;

// Takes and checks a whole message's bodies, its end, the expectation and the budget (null: none).
// `closed`: of the bodies that can stay so, the structure alone.
void check_message(Cursor cursor, const Expectation* expectation, bool closed, Meter* meter);

// Fills k indices and k float32 values. Checks again, so that a buffer changed by another thread
// is an error and never a stray write.
void read_index(const Body& body, const Cursor& cursor, int32_t* index);
void read_index(const Body& body, const Cursor& cursor, int64_t* index);
void read_ternary_values(const Body& body, float* value);

// Appends method, dtype and shape; returns numel. Throws PackError for a shape no packet can have.
int64_t put_head(Message* message, Method method, int dtype, const std::vector<int64_t>& shape);
void put_dense(Message* message, int64_t numel, const float* value, int64_t values);
template <class Index>
void put_sparse(Message* message, int64_t numel, const Index* index, const float* value, int64_t k);
// The sign bits of k values.
void put_signs(Message* message, const float* value, int64_t k);
// Throws PackError where one of k values is not finite, or zero.
void check_sent(const float* value, int64_t k);
// k and, where there are elements, the scale; their streams follow.
void put_ternary_head(Message* message, int64_t k, float scale);
template <class Index>
void put_ternary(Message* message, int64_t numel, const Index* index, const float* value, int64_t k,
                 float scale);

}  // namespace gcext::wire
