#include "sum.h"

#include <algorithm>
#include <cstring>

#include "fields.h"
#include "powers.h"

namespace gcext::wire {
namespace {

// Of a rotation: its values are at most sqrt(2^20) scales, but for rounding.
constexpr float kRotatedBound = 2048;

// The largest magnitude of n float32, as bits.
uint32_t largest_bits(const uint8_t* values, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, load_word(values + 4 * i) & 0x7fffffff);
  return most;
}

// The largest magnitude of n 16-bit floats, as their code without the sign.
uint32_t largest_code(const uint8_t* codes, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint16_t code;
    std::memcpy(&code, codes + 2 * i, 2);
    most = std::max(most, uint32_t{code} & 0x7fff);
  }
  return most;
}

float bound_of_codes(const CodeFields& codes, int64_t k) {
  if (codes.table == CodeTable::kFloat16) return half_value(largest_code(codes.bits, k));
  if (codes.table == CodeTable::kBfloat16) return bfloat_value(largest_code(codes.bits, k));
  return float_of(largest_bits(codes.scale, codes.scales));
}

// No value of the term is larger.
float bound_of(const Body& term, const Cursor& cursor) {
  switch (term.method) {
    case kDense:
    case kSparse:
    case kRandom:
      return float_of(largest_bits(term.values, term.k));
    case kLevels:
    case kLevels2:
      return float_of(largest_bits(term.levels.norm, term.levels.norms));
    case kPowers:
      return largest_power(term, cursor);
    case kPolar:
      return float_of(largest_bits(term.polar.scale, term.polar.scales)) *
             (term.polar.rotated ? kRotatedBound : 1);
    case kCodes:
      return bound_of_codes(term.codes, term.k);
    default:  // ternary, sign
      return term.scale;
  }
}

}  // namespace

bool can_be_term(uint8_t method) {
  switch (method) {
    case kDense:
    case kSparse:
    case kTernary:
    case kRandom:
    case kSign:
    case kLevels:
    case kLevels2:
    case kPolar:
    case kCodes:
    case kPowers:
      return true;
    default:
      return false;
  }
}

void take_sum(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  body->support = kAll;
  body->members = cursor->varint("count");
  if (body->members < 2 || body->members > kMaxTerms)
    cursor->fail("count", "count", place,
                 "must be in [2, " + std::to_string(kMaxTerms) + "], got " +
                     std::to_string(body->members) + ".");
  body->terms = cursor->at();
  const std::string scope = cursor->scope();
  for (int64_t i = 0; i < body->members; ++i) {
    cursor->scope(scope + "terms[" + std::to_string(i) + "].");
    place = cursor->at();
    if (cursor->left() > 0 && !can_be_term(*place)) {
      cursor->byte("method");
      cursor->fail("method", "method", place,
                   "must be one that a sum may hold, got " + std::to_string(*place) + ".");
    }
    const Body term = take_body(cursor, true);
    if (term.dtype != body->dtype)
      cursor->fail("dtype", "type", place + 1,
                   "must be that of the sum, " + std::to_string(body->dtype) + ", got " +
                       std::to_string(term.dtype) + ".");
    if (term.ndim != body->ndim || !std::equal(term.dims, term.dims + term.ndim, body->dims))
      cursor->fail("shape", "dims", place + 2, "must be those of the sum.");
  }
  cursor->scope(scope);
}

void check_sum(const Body& body, const Cursor& cursor) {
  float sum = 0;
  for_each_term(body, cursor, [&](const Body& term, const Cursor& at) {
    check_body(term, at);
    sum += bound_of(term, at);
  });
  if (bits_of(sum) >= kInfinity)
    cursor.fail("value", "terms", body.terms,
                "the largest magnitudes of the terms must have a finite sum.");
}

}  // namespace gcext::wire
