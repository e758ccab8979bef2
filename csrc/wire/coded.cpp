#include "coded.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "../bits.h"
#include "codes.h"
#include "fields.h"
#include "levels.h"
#include "levels2.h"
#include "powers.h"

namespace gcext::wire {
namespace {

constexpr int kMinBlockBits = 5, kMaxBlockBits = 20;
// Of a rotation: chunks_of in gcext/polar/_values.py.
constexpr int64_t kChunk = 1 << 16, kMinChunk = 64;
constexpr uint8_t kSoft = 1, kRotated = 2;

uint64_t take_seed(Cursor* cursor) {
  uint64_t seed;
  std::memcpy(&seed, cursor->take(8, "seed"), 8);
  return seed;
}

void take_support(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  const uint8_t support = cursor->byte("support");
  if (!support_allowed(static_cast<Method>(body->method), support))
    cursor->fail("support", "support", place,
                 "must be one that the method has, got " + std::to_string(support) + ".");
  body->support = static_cast<Support>(support);
  body->k = body->numel;
  if (support != kAll) take_k(cursor, body);
  if (support == kIndices) take_section(cursor, body->k, &body->index);
  if (support == kDrawn) body->seed = take_seed(cursor);
}

void take_sign(Cursor* cursor, Body* body) {
  const uint32_t word = load_word(take_scales(cursor, 1, "scale", kInfinity - 1));
  std::memcpy(&body->scale, &word, 4);
  body->signs = take_plane(cursor, body->k, "signs");
}

void take_polar(Cursor* cursor, Body* body) {
  PolarFields& polar = body->polar;
  const auto rule = [&](bool holds, const char* field, const uint8_t* place, const char* text,
                        int64_t got) {
    if (!holds) cursor->fail("polar", field, place, text + (", got " + std::to_string(got)) + ".");
  };
  const uint8_t* place = cursor->at();
  const uint8_t table = cursor->byte("table");
  rule(table == kPolarTable, "table", place, "must be 1", table);
  const uint8_t flags = cursor->byte("flags");
  rule(flags <= (kSoft | kRotated), "flags", place + 1, "must have no reserved bit", flags);
  const uint8_t level = cursor->byte("block");
  rule(level >= kMinBlockBits && level <= kMaxBlockBits, "block", place + 2, "must be in [5, 20]",
       level);
  polar.soft = (flags & kSoft) != 0;
  polar.rotated = (flags & kRotated) != 0;
  polar.block = int64_t{1} << level;
  place = cursor->at();
  polar.kept = cursor->varint("kept");
  rule(polar.kept <= polar.block, "kept", place, "must be at most a block", polar.kept);
  if (polar.rotated) polar.seed = take_seed(cursor);
  const PolarSize size = polar_size(body->k, polar.block, polar.kept, polar.rotated);
  polar.scales = size.scales;
  polar.scale =
      take_scales(cursor, size.scales, "scales", polar.rotated ? kLargestRotated : kInfinity - 1);
  if ((size.bits + 7) / 8 > static_cast<uint64_t>(cursor->left()))
    cursor->take(cursor->left() + 1, "message");
  const int64_t bits = static_cast<int64_t>(size.bits);
  polar.bytes = plane_bytes(bits, 1);
  polar.message = take_plane(cursor, bits, "message");
}

}  // namespace

bool support_allowed(Method method, uint8_t support) {
  if (method == kRandom) return support == kDrawn;
  return method == kSign ? support == kAll || support == kDrawn : support <= kDrawn;
}

PolarSize polar_size(int64_t k, int64_t block, int64_t kept, bool rotated) {
  unsigned __int128 symbols = static_cast<uint64_t>(k);
  int64_t chunks = 1;
  if (rotated) {
    const int64_t largest = std::max(block, kChunk);
    chunks = k / largest + (k % largest != 0);
    if (const int64_t rest = k % largest; rest > 0) {
      int64_t size = std::max(block, kMinChunk);
      while (size < rest) size *= 2;
      symbols += static_cast<uint64_t>(size - rest);
    }
  }
  const uint64_t divisor = static_cast<uint64_t>(block);
  return {chunks, (symbols + divisor - 1) / divisor * static_cast<uint64_t>(kept)};
}

void take_coded(Cursor* cursor, Body* body) {
  take_support(cursor, body);
  switch (body->method) {
    case kRandom:
      body->values = take_floats(cursor, body->k, "values");
      break;
    case kSign:
      take_sign(cursor, body);
      break;
    case kLevels:
      take_levels(cursor, body);
      break;
    case kPowers:
      take_powers(cursor, body);
      break;
    case kLevels2:
      take_levels2(cursor, body);
      break;
    case kCodes:
      take_codes(cursor, body);
      break;
    default:
      take_polar(cursor, body);
  }
}

void check_coded(const Body& body, const Cursor& cursor) {
  if (body.method == kSign && bits_of(body.scale) == 0) {
    const uint8_t* end = body.signs + plane_bytes(body.k, 1);
    if (std::any_of(body.signs, end, [](uint8_t eight) { return eight != 0; }))
      cursor.fail("scale", "scale", body.signs - 4, "must be positive where a sign bit is set.");
  }
  if (body.method == kLevels) check_levels(body, cursor);
  if (body.method == kPowers) check_powers(body, cursor);
  if (body.method == kLevels2) check_levels2(body, cursor);
  if (body.method == kCodes) check_codes(body, cursor);
}

void put_support(Message* message, Support support, int64_t k, uint64_t seed) {
  message->byte(support);
  if (support != kAll) message->varint(static_cast<uint64_t>(k));
  if (support == kDrawn) message->number(seed, 8);
}

void put_random(Message* message, int64_t k, const float* value, int64_t values) {
  check_count("random", "values", values, k);
  const int64_t bad = first_bad_value(reinterpret_cast<const uint8_t*>(value), k, true);
  if (bad < k)
    throw PackError("pack: values must be finite, got another at place " + std::to_string(bad) +
                    ".");
  put_floats(message, value, k);
}

void put_sign(Message* message, int64_t k, float scale, const uint8_t* bits, int64_t bytes) {
  check_floats("sign", "the scale", &scale, 1, kInfinity - 1);
  check_count("sign", "bytes of signs", bytes, plane_bytes(k, 1));
  check_padding("sign", bits, k);
  if (scale == 0 && std::any_of(bits, bits + bytes, [](uint8_t eight) { return eight != 0; }))
    throw PackError("pack: a sign packet of scale 0 must have no bit set. Clear the signs.");
  message->word(bits_of(scale));
  if (bytes > 0) message->borrow(bits, bytes);
}

void put_polar(Message* message, int64_t k, const PolarArrays& arrays) {
  const int level = arrays.block > 0 ? __builtin_ctzll(static_cast<uint64_t>(arrays.block)) : 0;
  if (level < kMinBlockBits || level > kMaxBlockBits || arrays.block != int64_t{1} << level)
    throw PackError("pack: block must be a power of two in [2^5, 2^20], got " +
                    std::to_string(arrays.block) + ".");
  if (arrays.kept < 0 || arrays.kept > arrays.block)
    throw PackError("pack: kept must be in [0, block], got " + std::to_string(arrays.kept) + ".");
  const PolarSize size = polar_size(k, arrays.block, arrays.kept, arrays.rotated);
  check_count("polar", "scales", arrays.scales, size.scales);
  check_floats("polar", "the scales", arrays.scale, arrays.scales,
               arrays.rotated ? kLargestRotated : kInfinity - 1);
  if ((size.bits + 7) / 8 != static_cast<uint64_t>(arrays.bytes))
    throw PackError("pack: a polar message must have kept bits a block, got " +
                    std::to_string(arrays.bytes) + " bytes.");
  check_padding("polar", arrays.message, static_cast<int64_t>(size.bits));
  message->byte(kPolarTable);
  message->byte(static_cast<uint8_t>((arrays.soft ? kSoft : 0) | (arrays.rotated ? kRotated : 0)));
  message->byte(static_cast<uint8_t>(level));
  message->varint(static_cast<uint64_t>(arrays.kept));
  if (arrays.rotated) message->number(arrays.seed, 8);
  put_floats(message, arrays.scale, arrays.scales);
  if (arrays.bytes > 0) message->borrow(arrays.message, arrays.bytes);
}

}  // namespace gcext::wire
