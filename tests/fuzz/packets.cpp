#include "packets.h"

#include <cstdio>
#include <cstdlib>

#include "bits.h"
#include "wire/budget.h"
#include "wire/coded.h"
#include "wire/codes.h"
#include "wire/dct.h"
#include "wire/lender.h"
#include "wire/levels.h"
#include "wire/levels2.h"
#include "wire/lowrank.h"
#include "wire/merged.h"
#include "wire/powers.h"
#include "wire/sketch.h"
#include "wire/sum.h"

namespace gcext::fuzz {

using namespace wire;

uint64_t digest(const uint8_t* first, int64_t bytes) {
  uint64_t sum = 0x9e3779b97f4a7c15u + static_cast<uint64_t>(bytes);
  for (int64_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, first + i, static_cast<size_t>(std::min<int64_t>(8, bytes - i)));
    sum = (sum ^ word) * 0xff51afd7ed558ccdu;
    sum ^= sum >> 32;
  }
  return sum;
}

void seal(Bytes* message) {
  const auto hashed = static_cast<int64_t>(message->size()) - kChecksumBytes;
  if (hashed < 0) return;
  const uint64_t sum = digest(message->data(), hashed);
  std::memcpy(message->data() + hashed, &sum, 8);
}

Bytes sealed(const uint8_t* body, size_t bytes) {
  Bytes message(kMagic, kMagic + 4);
  message.push_back(kVersion);
  message.insert(message.end(), body, body + bytes);
  message.resize(message.size() + kChecksumBytes);
  seal(&message);
  return message;
}

Bytes written(const Message& body) {
  Bytes bytes(static_cast<size_t>(body.bytes()));
  body.write(bytes.data());
  return sealed(bytes.data(), bytes.size());
}

size_t place_of(const char* code) {
  size_t i = 0;
  while (i < kCodeCount && std::strcmp(kErrorCodes[i], code) != 0) ++i;
  return i;
}

Cursor open_checked(const Bytes& message) {
  const auto bytes = static_cast<int64_t>(message.size());
  const Cursor cursor = open_frame(message.data(), bytes);
  const uint8_t* const place = message.data() + bytes - kChecksumBytes;
  uint64_t sum;
  std::memcpy(&sum, place, 8);
  if (digest(message.data(), bytes - kChecksumBytes) != sum)
    cursor.fail("checksum", "checksum", place, "does not match the bytes.");
  return cursor;
}

void set_parts(int64_t most) {
  static int64_t parts;
  parts = most;
  Lender lender;
  lender.threads = [] { return parts; };
  lender.run = [](int64_t count, void (*body)(void*, int64_t), void* context) {
    while (count-- > 0) body(context, count);
  };
  set_lender(lender);
}

#ifdef GCEXT_FUZZ_NO_BUDGET
constexpr bool metered = false;
#else
constexpr bool metered = true;
#endif

Verdict decode(const Bytes& message, const Expectation* expectation, bool closed) {
  const Cost budget = expectation == nullptr ? Cost{kUnlimited, kUnlimited}
                                             : default_budget(expected_numel(*expectation),
                                                              static_cast<int64_t>(message.size()));
  return decode_within(message, budget, expectation, closed);
}

Verdict decode_within(const Bytes& message, const Cost& budget, const Expectation* expectation,
                      bool closed, Cost* spent) {
  try {
    Meter meter(budget);
    check_message(open_checked(message), expectation, closed, metered ? &meter : nullptr);
    if (spent != nullptr) *spent = meter.spent();
  } catch (const DecodeError& error) {
    const auto bytes = static_cast<int64_t>(message.size());
    if (place_of(error.code) == kCodeCount) broken("an unknown code");
    if (error.field.empty() || error.offset < 0 || error.offset > bytes) broken("a wrong offset");
    return {error.code, error.field, error.offset};
  }
  return {};
}

namespace {

// Kernels write where indices point: they must rise below the limit, even those of a message that
// changed while it was read.
template <class Index>
void check_indices(const Index* index, int64_t n, int64_t limit) {
  int64_t last = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (index[i] <= last || index[i] >= limit) broken("indices that do not rise below the limit");
    last = index[i];
  }
}

template <class Index>
void put_support(Message* message, const Body& body, const Cursor& cursor, Arrays* arrays) {
  put_support(message, body.support, body.k, body.seed);
  if (body.support != kIndices) return;
  Index* index = arrays->make<Index>(body.k);
  read_index(body, cursor, index);
  check_indices(index, body.k, body.numel);
  message->own(pack_section(index, body.k, body.numel));
}

template <class Index>
void put_level_fields(Message* message, const Body& body, const Cursor& cursor, Arrays* arrays) {
  const LevelFields& fields = body.levels;
  Index* at = arrays->make<Index>(fields.places);
  int16_t* level = arrays->make<int16_t>(fields.places);
  const LevelArrays kept{
      fields.steps, fields.bucket, arrays->copy<float>(fields.norm, fields.norms),
      fields.norms, level,         fields.places};
  if (body.method == kLevels) {
    read_levels(body, cursor, at, level);
    check_indices(at, fields.places, body.k);
    put_levels(message, body.k, kept, at, fields.places);
  } else {
    read_levels2(body, cursor, at, level);
    check_indices(at, fields.places, body.k);
    put_levels2(message, body.k, kept, at, fields.places);
  }
}

void put_values(Message* message, const Body& body, const Cursor& cursor, Arrays* arrays) {
  switch (body.method) {
    case kRandom:
      return put_random(message, body.k, arrays->copy<float>(body.values, body.k), body.k);
    case kSign: {
      const int64_t bytes = plane_bytes(body.k, 1);
      return put_sign(message, body.k, body.scale, arrays->copy<uint8_t>(body.signs, bytes), bytes);
    }
    case kLevels:
    case kLevels2:
      return body.narrow() ? put_level_fields<int32_t>(message, body, cursor, arrays)
                           : put_level_fields<int64_t>(message, body, cursor, arrays);
    case kPowers: {
      const int64_t n = power_count(body);
      int16_t* power = arrays->make<int16_t>(n);
      read_powers(body, cursor, power);
      return put_powers(message, body.k, body.scale, power, n);
    }
    case kCodes: {
      const CodeFields& codes = body.codes;
      return put_codes(message, body.k,
                       {static_cast<int>(codes.table), codes.width, codes.bucket,
                        arrays->copy<float>(codes.scale, codes.scales), codes.scales,
                        arrays->copy<uint8_t>(codes.bits, codes.bytes), codes.bytes});
    }
    default: {
      const PolarFields& polar = body.polar;
      return put_polar(message, body.k,
                       {polar.block, polar.kept, polar.soft, polar.rotated, polar.seed,
                        arrays->copy<float>(polar.scale, polar.scales), polar.scales,
                        arrays->copy<uint8_t>(polar.message, polar.bytes), polar.bytes});
    }
  }
}

template <class Index>
void put_pairs(Message* message, const Body& body, const Cursor& cursor, Arrays* arrays) {
  Index* index = arrays->make<Index>(body.k);
  read_index(body, cursor, index);
  check_indices(index, body.k, body.numel);
  if (body.method == kMerged) {
    Members members;
    read_members(body, cursor, arrays->make<float>(body.k), &members);
    return put_merged(message, body.numel, index, body.k, members);
  }
  const bool ternary = body.method == kTernary || (body.method == kDct && body.dct.ternary);
  float* value = ternary ? arrays->make<float>(body.k) : arrays->copy<float>(body.values, body.k);
  if (ternary && body.k > 0) read_ternary_values(body, value);
  if (body.method == kDct)
    put_dct(message, dct_view(body), body.dct, index, value, body.k, body.scale);
  else if (ternary)
    put_ternary(message, body.numel, index, value, body.k, body.scale);
  else
    put_sparse(message, body.numel, index, value, body.k);
}

}  // namespace

void put_body(Message* message, const Body& body, const Cursor& cursor, Arrays* arrays) {
  const std::vector<int64_t> shape(body.dims, body.dims + body.ndim);
  put_head(message, static_cast<Method>(body.method), body.dtype, shape);
  switch (body.method) {
    case kDense:
      return put_dense(message, body.numel, arrays->copy<float>(body.values, body.k), body.k);
    case kSparse:
    case kTernary:
    case kMerged:
    case kDct:
      return body.narrow() ? put_pairs<int32_t>(message, body, cursor, arrays)
                           : put_pairs<int64_t>(message, body, cursor, arrays);
    case kSum:
      message->varint(static_cast<uint64_t>(body.members));
      for_each_term(body, cursor, [&](const Body& term, const Cursor& at) {
        put_body(message, term, at, arrays);
      });
      return;
    case kSketch: {
      const SketchFields& sketch = body.sketch;
      const int64_t cells = sketch.rows * sketch.cols;
      return put_sketch(message, {sketch.rows, sketch.cols, sketch.seed,
                                  arrays->copy<float>(sketch.cell, cells), cells});
    }
    case kLowRank: {
      const Matrix view = lowrank_view(body);
      const int64_t rank = body.lowrank.rank, lefts = view.rows * rank, rights = view.cols * rank;
      return put_lowrank(message, shape, rank,
                         {arrays->copy<float>(body.lowrank.left, lefts), lefts,
                          arrays->copy<float>(body.lowrank.right, rights), rights});
    }
    default:
      body.narrow() ? put_support<int32_t>(message, body, cursor, arrays)
                    : put_support<int64_t>(message, body, cursor, arrays);
      put_values(message, body, cursor, arrays);
  }
}

Bytes pack_again(const Bytes& message) {
  Cursor cursor = open_checked(message);
  const Body body = take_body(&cursor, false);
  Message out;
  Arrays arrays;
  if (body.method != kGroup) {
    put_body(&out, body, cursor, &arrays);
    return written(out);
  }
  out.byte(kGroup);
  out.varint(static_cast<uint64_t>(body.members));
  for (int64_t i = 0; i < body.members; ++i) {
    const Body member = take_body(&cursor, true);
    put_body(&out, member, cursor, &arrays);
  }
  return written(out);
}

}  // namespace gcext::fuzz
