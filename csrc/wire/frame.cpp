#include "frame.h"

#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "../bits.h"
#include "blocks.h"
#include "budget.h"
#include "coded.h"
#include "dct.h"
#include "fields.h"
#include "lender.h"
#include "lowrank.h"
#include "merged.h"
#include "names.h"
#include "sketch.h"
#include "sum.h"

namespace gcext::wire {
namespace {

// The product of the dims that are not 0 must stay below 2^63, so that strides do too.
bool count_elements(const int64_t* dims, size_t ndim, int64_t* numel) {
  int64_t product = 1;
  bool empty = false;
  for (size_t i = 0; i < ndim; ++i) {
    if (dims[i] == 0)
      empty = true;
    else if (__builtin_mul_overflow(product, dims[i], &product))
      return false;
  }
  *numel = empty ? 0 : product;
  return true;
}

void take_index(Cursor* cursor, Body* body) {
  body->dct.by_block ? take_blocks(cursor, body) : take_section(cursor, body->k, &body->index);
}

// A shape as Python writes it.
std::string text_of(const int64_t* dims, size_t ndim) {
  std::string text = "(";
  for (size_t i = 0; i < ndim; ++i)
    text += (i > 0 ? ", " : "") +
            (dims[i] == kNoDim ? std::string("beyond 64 bits") : std::to_string(dims[i]));
  return text + (ndim == 1 ? ",)" : ")");
}

void check_kind(const Body& body, const Expectation& expectation, const Cursor& cursor) {
  const bool group = body.method == kGroup;
  const size_t count = expectation.shapes.size();
  if (expectation.group == group && (!group || static_cast<uint64_t>(body.members) == count))
    return;
  const auto kind = [](bool group, size_t count) {
    return group ? "a group of " + std::to_string(count) : std::string("a single packet");
  };
  cursor.fail("expect", group ? "count" : "method", body.start + (group ? 1 : 0),
              "must be " + kind(expectation.group, count) + ", as the caller expects, got " +
                  kind(group, static_cast<size_t>(body.members)) + ".");
}

void check_shape(const Body& body, const std::vector<int64_t>& shape, const Cursor& cursor) {
  const auto ndim = static_cast<size_t>(body.ndim);
  if (shape.size() == ndim && std::equal(shape.begin(), shape.end(), body.dims)) return;
  cursor.fail("expect", "dims", body.start + 2,
              "must be " + text_of(shape.data(), shape.size()) + ", as the caller expects, got " +
                  text_of(body.dims, ndim) + ".");
}

}  // namespace

Cursor open_frame(const uint8_t* message, int64_t bytes, std::vector<Field>* trace) {
  // A zero length may come with a null pointer.
  Cursor cursor(message, message, message + std::max<int64_t>(bytes - kChecksumBytes, 0));
  cursor.trace_into(trace);
  if (bytes < kHeadBytes + kChecksumBytes)
    cursor.fail(
        "truncated", "frame", message,
        "needs at least 13 bytes, got " + std::to_string(bytes) + ". Fetch the message again.");
  if (std::memcmp(cursor.take(4, "magic"), kMagic, 4) != 0)
    cursor.fail("magic", "magic", message, "must be 89 47 43 58. This is no gcext packet.");
  const uint8_t version = cursor.byte("version");
  if (version != kVersion)
    cursor.fail("version", "version", message + 4,
                "must be 1, got " + std::to_string(version) + ". Update gcext.");
  return cursor;
}

void take_sparse(Cursor* cursor, Body* body) {
  take_k(cursor, body);
  take_index(cursor, body);
  body->values = take_floats(cursor, body->k, "values");
}

void take_ternary(Cursor* cursor, Body* body, uint32_t largest) {
  take_k(cursor, body);
  if (body->k == 0) return;
  const uint8_t* place = cursor->at();
  const uint32_t word = cursor->word("scale");
  if (word == 0 || word > largest)
    cursor->fail("scale", "scale", place,
                 largest == kLargestRotated ? "must be positive and at most 2^116."
                                            : "must be positive and finite.");
  std::memcpy(&body->scale, &word, 4);
  take_index(cursor, body);
  body->signs = take_plane(cursor, body->k, "signs");
}

Body take_body(Cursor* cursor, bool member) {
  Body body;
  body.start = cursor->at();
  body.method = cursor->byte("method");
  if (!is_method(body.method) || (member && body.method == kGroup))
    cursor->fail("method", "method", body.start,
                 "must be one that version 1 has here, got " + std::to_string(body.method) + ".");
  if (body.method == kGroup) {
    const uint8_t* place = cursor->at();
    body.members = cursor->varint("count");
    if (body.members == 0) cursor->fail("count", "count", place, "must be at least 1, got 0.");
    return body;
  }
  const uint8_t type = cursor->byte("type");
  body.dtype = type >> 4;
  body.ndim = type & 15;
  if (body.dtype >= kDtypes)
    cursor->fail("dtype", "type", body.start + 1,
                 "must be one that version 1 has, got " + std::to_string(body.dtype) + ".");
  const uint8_t* place = cursor->at();
  for (int i = 0; i < body.ndim; ++i) body.dims[i] = cursor->varint("dims");
  if (!count_elements(body.dims, static_cast<size_t>(body.ndim), &body.numel))
    cursor->fail("shape", "dims", place, "the product must be below 2^63.");
  switch (body.method) {
    case kDense:
      body.support = kAll;
      body.k = body.numel;
      body.values = take_floats(cursor, body.k, "values");
      break;
    case kSparse:
      take_sparse(cursor, &body);
      break;
    case kTernary:
      take_ternary(cursor, &body, kInfinity - 1);
      break;
    case kMerged:
      take_merged(cursor, &body);
      break;
    case kSum:
      take_sum(cursor, &body);
      break;
    case kSketch:
      take_sketch(cursor, &body);
      break;
    case kLowRank:
      take_lowrank(cursor, &body);
      break;
    case kDct:
      take_dct(cursor, &body);
      break;
    default:
      take_coded(cursor, &body);
  }
  return body;
}

void check_body(const Body& body, const Cursor& cursor) {
  if (body.method == kSum) return check_sum(body, cursor);
  if (body.dct.by_block) read_blocks(body, cursor, nullptr, nullptr);
  if (body.support == kIndices) check_section(body.index, body.numel, cursor);
  if (body.values != nullptr) {
    const bool zeros = body.method != kSparse && body.method != kDct;
    const int64_t bad = first_bad_value(body.values, body.k, zeros);
    if (bad < body.k)
      cursor.fail("value", "values", body.values + 4 * bad,
                  zeros ? "must be finite." : "must be finite and not zero.");
  }
  if (body.method == kMerged) read_members(body, cursor, nullptr, nullptr);
  if (body.method == kSketch) return check_sketch(body, cursor);
  if (body.method == kLowRank) return check_lowrank(body, cursor);
  if (body.method == kDct) return check_dct(body, cursor);
  if (body.method > kGroup) check_coded(body, cursor);
}

namespace {

// Bodies whose streams are still to be checked: a few, so that a message costs no memory.
class Opened {
 public:
  // closed: those that can stay closed are not opened.
  explicit Opened(bool closed) : closed_(closed) {}

  void add(const Body& body, const Cursor& cursor) {
    if (closed_ && can_stay_closed(body)) return;
    bodies_[static_cast<size_t>(count_)] = body;
    cursors_[static_cast<size_t>(count_)].emplace(cursor);
    if (++count_ == kMost) check();
  }

  void check() {
    const int64_t count = std::exchange(count_, 0);
    run_items(
        count, [&](int64_t i) { return bodies_[static_cast<size_t>(i)].k; },
        [&](int64_t i) {
          check_body(bodies_[static_cast<size_t>(i)], *cursors_[static_cast<size_t>(i)]);
        });
  }

 private:
  static constexpr int64_t kMost = 16;

  const bool closed_;
  int64_t count_ = 0;
  std::array<Body, kMost> bodies_;
  std::array<std::optional<Cursor>, kMost> cursors_;
};

// Takes the members off the cursor and checks each: its fields, and then its streams, a few
// members' side by side. Where fields are wrong, the streams of the members before come first.
template <class Check>
void check_members(int64_t members, Cursor* cursor, bool closed, const Check& check_fields) {
  Opened opened(closed);
  try {
    for (int64_t i = 0; i < members; ++i) {
      cursor->scope("members[" + std::to_string(i) + "].");
      const Body member = take_body(cursor, true);
      check_fields(member, static_cast<size_t>(i));
      opened.add(member, *cursor);
    }
  } catch (...) {
    opened.check();
    throw;
  }
  opened.check();
  cursor->scope("");
}

}  // namespace

void check_message(Cursor cursor, const Expectation* expectation, bool closed, Meter* meter) {
  const Body body = take_body(&cursor, false);
  if (expectation != nullptr) check_kind(body, *expectation, cursor);
  // What the fields alone tell.
  const auto check_fields = [&](const Body& each, size_t i) {
    if (expectation != nullptr) check_shape(each, expectation->shapes[i], cursor);
    if (meter != nullptr) meter->add(each, cursor);
  };
  if (body.method == kGroup) {
    check_members(body.members, &cursor, closed, check_fields);
  } else {
    check_fields(body, 0);
    if (!(closed && can_stay_closed(body))) check_body(body, cursor);
  }
  if (cursor.left() > 0)
    cursor.fail(
        "length", "checksum", cursor.at(),
        "must follow the body, got " + std::to_string(cursor.left()) + " bytes in between.");
}

void read_index(const Body& body, const Cursor& cursor, int32_t* index) {
  if (body.dct.by_block) return read_blocks(body, cursor, index, nullptr);
  read_section(body.index, body.numel, cursor, index);
}
void read_index(const Body& body, const Cursor& cursor, int64_t* index) {
  if (body.dct.by_block) return read_blocks(body, cursor, nullptr, index);
  read_section(body.index, body.numel, cursor, index);
}

void read_ternary_values(const Body& body, float* value) {
  bits().unpack_signs(body.signs, body.k, body.scale, value);
}

int64_t put_head(Message* message, Method method, int dtype, const std::vector<int64_t>& shape) {
  if (shape.size() > kMaxDims)
    throw PackError("pack: shape must have at most 15 dimensions, got " +
                    std::to_string(shape.size()) + ". Flatten the tensor.");
  if (dtype < 0 || dtype >= kDtypes)
    throw PackError("pack: dtype must be a code in [0, 4), got " + std::to_string(dtype) + ".");
  int64_t numel = 0;
  for (const int64_t dim : shape)
    if (dim < 0)
      throw PackError("pack: dimensions must be at least 0, got " + std::to_string(dim) + ".");
  if (!count_elements(shape.data(), shape.size(), &numel))
    throw PackError("pack: the product of the dimensions must be below 2^63. Check the shape.");
  message->byte(method);
  message->byte(static_cast<uint8_t>(dtype << 4 | static_cast<int>(shape.size())));
  for (const int64_t dim : shape) message->varint(static_cast<uint64_t>(dim));
  return numel;
}

void put_dense(Message* message, int64_t numel, const float* value, int64_t values) {
  if (values != numel)
    throw PackError("pack: a dense packet needs a value per element, " + std::to_string(numel) +
                    ", got " + std::to_string(values) + ".");
  const int64_t bad = first_bad_value(reinterpret_cast<const uint8_t*>(value), numel, true);
  if (bad < numel)
    throw PackError("pack: values must be finite, got another at place " + std::to_string(bad) +
                    ".");
  if (numel > 0) message->borrow(value, 4 * numel);
}

void check_sent(const float* value, int64_t k) {
  const int64_t bad = first_bad_value(reinterpret_cast<const uint8_t*>(value), k, false);
  if (bad < k)
    throw PackError("pack: values must be finite and not zero, got another at place " +
                    std::to_string(bad) + ". Leave zeros out.");
}

template <class Index>
void put_sparse(Message* message, int64_t numel, const Index* index, const float* value,
                int64_t k) {
  check_sent(value, k);
  message->varint(static_cast<uint64_t>(k));
  message->own(pack_section(index, k, numel));
  if (k > 0) message->borrow(value, 4 * k);
}

void put_ternary_head(Message* message, int64_t k, float scale) {
  const uint32_t word = bits_of(scale);
  if (k == 0 ? word != 0 : word == 0 || word >= kInfinity)
    throw PackError("pack: scale must be positive and finite (0 where nothing is sent), got " +
                    std::to_string(scale) + ". Use the mean magnitude of the values.");
  message->varint(static_cast<uint64_t>(k));
  if (k > 0) message->word(word);
}

void put_signs(Message* message, const float* value, int64_t k) {
  std::vector<uint8_t> signs(static_cast<size_t>(plane_bytes(k, 1)));
  bits().pack_signs(value, k, signs.data());
  message->own(std::move(signs));
}

template <class Index>
void put_ternary(Message* message, int64_t numel, const Index* index, const float* value, int64_t k,
                 float scale) {
  put_ternary_head(message, k, scale);
  if (k == 0) return;
  message->own(pack_section(index, k, numel));
  put_signs(message, value, k);
}

template void put_sparse(Message*, int64_t, const int32_t*, const float*, int64_t);
template void put_sparse(Message*, int64_t, const int64_t*, const float*, int64_t);
template void put_ternary(Message*, int64_t, const int32_t*, const float*, int64_t, float);
template void put_ternary(Message*, int64_t, const int64_t*, const float*, int64_t, float);

}  // namespace gcext::wire
