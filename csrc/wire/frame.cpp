#include "frame.h"

#include <cstring>
#include <limits>
#include <string>

#include "../bits.h"
#include "merged.h"

namespace gcext::wire {
namespace {

constexpr uint32_t kInfinity = 0x7f800000;

uint32_t bits_of(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return word;
}

// The first of n float32 that is not finite (or, where zeros are forbidden, is zero); n if none.
int64_t first_bad_value(const uint8_t* values, int64_t n, bool zeros_allowed) {
  const uint32_t floor = zeros_allowed ? 0 : 1;
  const auto bad = [&](int64_t i) {
    uint32_t word;
    std::memcpy(&word, values + 4 * i, 4);
    return (word & 0x7fffffff) - floor >= kInfinity - floor;
  };
  constexpr int64_t kBlock = 4096;
  for (int64_t from = 0; from < n; from += kBlock) {
    const int64_t to = std::min(n, from + kBlock);
    unsigned any = 0;
    for (int64_t i = from; i < to; ++i) any |= bad(i);
    if (any == 0) continue;
    for (int64_t i = from; i < to; ++i)
      if (bad(i)) return i;
  }
  return n;
}

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

void take_values(Cursor* cursor, Body* body) {
  // Division before multiplication: k may be any number below 2^63 here.
  if (body->k > cursor->left() / 4) cursor->take(cursor->left() + 1, "values");
  body->values = cursor->take(4 * body->k, "values");
}

void take_k(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  body->k = cursor->varint("k");
  if (body->k > body->numel)
    cursor->fail("k", "k", place,
                 "must be at most the number of elements " + std::to_string(body->numel) +
                     ", got " + std::to_string(body->k) + ".");
}

const uint8_t* take_plane(Cursor* cursor, int64_t bits, const char* field) {
  const uint8_t* plane = cursor->take((bits + 7) / 8, field);
  if (!plane_padded(plane, bits))
    cursor->fail("padding", field, cursor->at() - 1, "must end with zero bits.");
  return plane;
}

void take_ternary(Cursor* cursor, Body* body) {
  take_k(cursor, body);
  if (body->k == 0) return;
  const uint8_t* place = cursor->at();
  const uint32_t word = cursor->word("scale");
  if (word == 0 || word >= kInfinity)
    cursor->fail("scale", "scale", place, "must be positive and finite.");
  std::memcpy(&body->scale, &word, 4);
  take_section(cursor, body->k, &body->index);
  body->signs = take_plane(cursor, body->k, "signs");
}

void take_merged(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  body->parts = cursor->varint("parts");
  if (body->parts < 2 || body->parts > kMaxParts)
    cursor->fail("parts", "parts", place,
                 "must be in [2, " + std::to_string(kMaxParts) + "], got " +
                     std::to_string(body->parts) + ".");
  body->scales = cursor->take(4 * body->parts, "scales");
  for (int64_t j = 0; j < body->parts; ++j) {
    uint32_t word;
    std::memcpy(&word, body->scales + 4 * j, 4);
    if (word >= kInfinity)
      cursor->fail("scale", "scales", body->scales + 4 * j, "must be 0, or positive and finite.");
  }
  take_k(cursor, body);
  if (body->k == 0) return;
  place = cursor->at();
  body->members = cursor->varint("members");
  int64_t most;
  if (__builtin_mul_overflow(body->k, body->parts, &most))
    most = std::numeric_limits<int64_t>::max();
  if (body->members < body->k || body->members > most)
    cursor->fail("member", "members", place,
                 "must be in [k, k * parts], got " + std::to_string(body->members) + ".");
  take_section(cursor, body->k, &body->index);
  body->rows.tiles_name = "members.tiles";
  body->rows.remainders_name = "members.remainders";
  body->rows.unary_name = "members.unary";
  take_section(cursor, body->members, &body->rows);
  body->signs = take_plane(cursor, body->members, "signs");
}

template <class Index>
void fill_index(const Body& body, const Cursor& cursor, Index* index) {
  SectionReader reader(body.index, body.numel, cursor);
  while (const int64_t n = reader.next(index)) index += n;
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

Cursor open_frame(const uint8_t* message, int64_t bytes) {
  // A zero length may come with a null pointer.
  Cursor cursor(message, message, message + std::max<int64_t>(bytes - kChecksumBytes, 0));
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

Body take_body(Cursor* cursor, bool member) {
  Body body;
  body.start = cursor->at();
  body.method = cursor->byte("method");
  if (body.method < kDense || body.method > kGroup || (member && body.method == kGroup))
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
      body.k = body.numel;
      take_values(cursor, &body);
      break;
    case kSparse:
      take_k(cursor, &body);
      take_section(cursor, body.k, &body.index);
      take_values(cursor, &body);
      break;
    case kTernary:
      take_ternary(cursor, &body);
      break;
    default:
      take_merged(cursor, &body);
  }
  return body;
}

void check_body(const Body& body, const Cursor& cursor) {
  if (body.method != kDense) {
    SectionReader reader(body.index, body.numel, cursor);
    if (body.narrow()) {
      int32_t tile[kTile];
      while (reader.next(tile) > 0) {
      }
    } else {
      int64_t tile[kTile];
      while (reader.next(tile) > 0) {
      }
    }
  }
  if (body.values != nullptr) {
    const int64_t bad = first_bad_value(body.values, body.k, body.method == kDense);
    if (bad < body.k)
      cursor.fail("value", "values", body.values + 4 * bad,
                  body.method == kDense ? "must be finite." : "must be finite and not zero.");
  }
  if (body.method == kMerged) read_members(body, cursor, nullptr, nullptr);
}

void check_message(Cursor cursor, const Expectation* expectation) {
  const Body body = take_body(&cursor, false);
  const bool group = body.method == kGroup;
  if (expectation != nullptr) check_kind(body, *expectation, cursor);
  for (int64_t i = 0; i < (group ? body.members : 1); ++i) {
    if (group) cursor.scope("members[" + std::to_string(i) + "].");
    const Body member = group ? take_body(&cursor, true) : body;
    if (expectation != nullptr)
      check_shape(member, expectation->shapes[static_cast<size_t>(i)], cursor);
    check_body(member, cursor);
  }
  cursor.scope("");
  if (cursor.left() > 0)
    cursor.fail(
        "length", "checksum", cursor.at(),
        "must follow the body, got " + std::to_string(cursor.left()) + " bytes in between.");
}

void read_index(const Body& body, const Cursor& cursor, int32_t* index) {
  fill_index(body, cursor, index);
}
void read_index(const Body& body, const Cursor& cursor, int64_t* index) {
  fill_index(body, cursor, index);
}

void read_ternary_values(const Body& body, float* value) {
  bits().unpack_signs(body.signs, body.k, body.scale, value);
}

void Message::varint(uint64_t x) {
  for (; x >= 0x80; x >>= 7) byte(static_cast<uint8_t>(x | 0x80));
  byte(static_cast<uint8_t>(x));
}

void Message::word(uint32_t x) {
  for (int i = 0; i < 4; ++i) byte(static_cast<uint8_t>(x >> (8 * i)));
}

std::vector<uint8_t>& Message::small() {
  if (pieces_.empty() || !pieces_.back().open) {
    pieces_.emplace_back();
    pieces_.back().open = true;
  }
  ++bytes_;
  return pieces_.back().owned;
}

void Message::own(std::vector<uint8_t> piece) {
  bytes_ += static_cast<int64_t>(piece.size());
  pieces_.emplace_back();
  pieces_.back().owned = std::move(piece);
}

void Message::own(PackedSection section) {
  own(std::move(section.table));
  own(std::move(section.remainders));
  own(std::move(section.unary));
}

void Message::borrow(const void* first, int64_t bytes) {
  bytes_ += bytes;
  pieces_.emplace_back();
  pieces_.back().borrowed = static_cast<const uint8_t*>(first);
  pieces_.back().bytes = bytes;
}

void Message::write(uint8_t* out) const {
  for (const Piece& piece : pieces_) {
    const bool borrowed = piece.borrowed != nullptr;
    const size_t bytes = borrowed ? static_cast<size_t>(piece.bytes) : piece.owned.size();
    if (bytes > 0) std::memcpy(out, borrowed ? piece.borrowed : piece.owned.data(), bytes);
    out += bytes;
  }
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

template <class Index>
void put_sparse(Message* message, int64_t numel, const Index* index, const float* value,
                int64_t k) {
  const int64_t bad = first_bad_value(reinterpret_cast<const uint8_t*>(value), k, false);
  if (bad < k)
    throw PackError("pack: values must be finite and not zero, got another at place " +
                    std::to_string(bad) + ". Leave zeros out.");
  message->varint(static_cast<uint64_t>(k));
  message->own(pack_section(index, k, numel));
  if (k > 0) message->borrow(value, 4 * k);
}

template <class Index>
void put_ternary(Message* message, int64_t numel, const Index* index, const float* value, int64_t k,
                 float scale) {
  const uint32_t word = bits_of(scale);
  if (k == 0 ? word != 0 : word == 0 || word >= kInfinity)
    throw PackError("pack: scale must be positive and finite (0 where nothing is sent), got " +
                    std::to_string(scale) + ". Use the mean magnitude of the values.");
  message->varint(static_cast<uint64_t>(k));
  if (k == 0) return;
  message->word(word);
  message->own(pack_section(index, k, numel));
  std::vector<uint8_t> signs(static_cast<size_t>(plane_bytes(k, 1)));
  bits().pack_signs(value, k, signs.data());
  message->own(std::move(signs));
}

template void put_sparse(Message*, int64_t, const int32_t*, const float*, int64_t);
template void put_sparse(Message*, int64_t, const int64_t*, const float*, int64_t);
template void put_ternary(Message*, int64_t, const int32_t*, const float*, int64_t, float);
template void put_ternary(Message*, int64_t, const int64_t*, const float*, int64_t, float);

}  // namespace gcext::wire
