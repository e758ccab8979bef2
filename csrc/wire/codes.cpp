#include "codes.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "../bits.h"
#include "fields.h"

namespace gcext::wire {
namespace {

bool is_float(CodeTable table) {
  return table == CodeTable::kFloat16 || table == CodeTable::kBfloat16;
}

bool has_scale(CodeTable table) {
  return table == CodeTable::kUniform || table == CodeTable::kDynamic8;
}

bool bucket_fits(CodeTable table, int64_t bucket, int64_t k) {
  return bucket == 0 || (bucket > 0 && bucket < k && !is_float(table));
}

// The first of k 16-bit floats that is not finite; k if none.
int64_t first_bad_float(const uint8_t* bits, int64_t k, CodeTable table) {
  const unsigned top = table == CodeTable::kFloat16 ? 0x7c00 : 0x7f80;
  const auto bad = [&](int64_t i) {
    uint16_t word;
    std::memcpy(&word, bits + 2 * i, 2);
    return (word & top) == top;
  };
  constexpr int64_t kBlock = 4096;
  for (int64_t from = 0; from < k; from += kBlock) {
    const int64_t to = std::min(k, from + kBlock);
    unsigned any = 0;
    for (int64_t i = from; i < to; ++i) any |= bad(i);
    for (int64_t i = from; any != 0 && i < to; ++i)
      if (bad(i)) return i;
  }
  return k;
}

// Code i, of at most 8 bits.
unsigned code_at(const uint8_t* bits, int64_t i, int width) {
  const int64_t first = i * width;
  const int shift = static_cast<int>(first & 7);
  unsigned word = bits[first >> 3];
  if (shift + width > 8) word |= static_cast<unsigned>(bits[(first >> 3) + 1]) << 8;
  return word >> shift & ((1u << width) - 1);
}

// Whether codes [from, to) all are `code`. Eight of them begin at a byte and take `width` bytes.
bool all_are(const uint8_t* bits, int64_t from, int64_t to, int width, unsigned code) {
  uint8_t eight[8] = {};
  for (int i = 0; i < 8 * width; ++i)
    eight[i >> 3] = static_cast<uint8_t>(eight[i >> 3] | (code >> i % width & 1) << (i & 7));
  for (int64_t i = from; i < to;) {
    const bool whole = i % 8 == 0 && to - i >= 8;
    if (whole ? std::memcmp(bits + i / 8 * width, eight, static_cast<size_t>(width)) != 0
              : code_at(bits, i, width) != code)
      return false;
    i += whole ? 8 : 1;
  }
  return true;
}

// The first bucket of scale 0 with another code than that of 0; `scales` if none.
int64_t first_bad_bucket(const CodeFields& codes, int64_t k) {
  const unsigned zero = code_of_zero(codes.table, codes.width);
  const int64_t bucket = codes.bucket == 0 ? k : codes.bucket;
  for (int64_t j = 0; j < codes.scales; ++j) {
    if (load_word(codes.scale + 4 * j) != 0) continue;
    const int64_t from = j * bucket, size = std::min(bucket, k - from);
    if (!all_are(codes.bits, from, from + size, codes.width, zero)) return j;
  }
  return codes.scales;
}

}  // namespace

void take_codes(Cursor* cursor, Body* body) {
  CodeFields& codes = body->codes;
  const int64_t k = body->k;
  const uint8_t* place = cursor->at();
  const uint8_t table = cursor->byte("table");
  if (table >= kCodeTables)
    cursor->fail("table", "table", place, "must be below 5, got " + std::to_string(table) + ".");
  codes.table = static_cast<CodeTable>(table);
  place = cursor->at();
  codes.width = cursor->byte("width");
  if (!width_fits(codes.table, codes.width))
    cursor->fail("width", "width", place,
                 "must be one that the table has, got " + std::to_string(codes.width) + ".");
  place = cursor->at();
  codes.bucket = cursor->varint("bucket");
  if (!bucket_fits(codes.table, codes.bucket, k))
    cursor->fail(
        "bucket", "bucket", place,
        "must be below k, and 0 for 16-bit floats, got " + std::to_string(codes.bucket) + ".");
  // Each size is compared with the bytes left before it is multiplied.
  const int64_t each = floats_per_bucket(codes.table, codes.width);
  const int64_t buckets = bucket_count(k, codes.bucket);
  if (each > 0 && buckets > cursor->left() / 4 / each) cursor->take(cursor->left() + 1, "scales");
  codes.scales = buckets * each;
  if (has_scale(codes.table)) {
    codes.scale = take_scales(cursor, codes.scales, "scales", kInfinity - 1);
  } else {
    codes.scale = take_floats(cursor, codes.scales, "scales");
    const int64_t bad = first_bad_value(codes.scale, codes.scales, true);
    if (bad < codes.scales)
      cursor->fail("scale", "scales", codes.scale + 4 * bad, "must be finite.");
  }
  if (codes.width > 0 && k > 8 * cursor->left() / codes.width)
    cursor->take(cursor->left() + 1, "codes");
  codes.bytes = plane_bytes(k * codes.width, 1);
  codes.bits = take_plane(cursor, k * codes.width, "codes");
}

void check_codes(const Body& body, const Cursor& cursor) {
  const CodeFields& codes = body.codes;
  if (is_float(codes.table)) {
    const int64_t bad = first_bad_float(codes.bits, body.k, codes.table);
    if (bad < body.k) cursor.fail("value", "codes", codes.bits + 2 * bad, "must be finite.");
  } else if (has_scale(codes.table)) {
    const int64_t bad = first_bad_bucket(codes, body.k);
    if (bad < codes.scales)
      cursor.fail("scale", "scales", codes.scale + 4 * bad,
                  "must be positive where a code is not that of 0.");
  }
}

void put_codes(Message* message, int64_t k, const CodeArrays& arrays) {
  CodeFields codes;
  codes.table = static_cast<CodeTable>(arrays.table);
  if (!width_fits(codes.table, arrays.width))
    throw PackError("pack: width must be one that the table has, got " +
                    std::to_string(arrays.width) +
                    ". It is at most 8 for values, 1 to 8 for uniform, 8 for dynamic8, else 16.");
  codes.width = static_cast<int>(arrays.width);
  codes.bucket = arrays.bucket;
  if (!bucket_fits(codes.table, codes.bucket, k))
    throw PackError("pack: bucket must be in [0, " + std::to_string(k) +
                    "), and 0 for 16-bit floats, got " + std::to_string(codes.bucket) +
                    ". Use 0 where one scale serves all.");
  const __int128 scales = static_cast<__int128>(bucket_count(k, codes.bucket)) *
                          floats_per_bucket(codes.table, codes.width);
  const __int128 bits = static_cast<__int128>(k) * codes.width;
  if (scales != arrays.scales || (bits + 7) / 8 != arrays.bytes)
    throw PackError("pack: a codes packet of " + std::to_string(k) + " elements does not have " +
                    std::to_string(arrays.scales) + " scales and " + std::to_string(arrays.bytes) +
                    " bytes of codes.");
  check_padding("codes", arrays.bits, static_cast<int64_t>(bits));
  codes.scales = arrays.scales;
  codes.scale = reinterpret_cast<const uint8_t*>(arrays.scale);
  codes.bits = arrays.bits;
  codes.bytes = arrays.bytes;
  if (has_scale(codes.table)) {
    check_floats("codes", "the scales", arrays.scale, arrays.scales, kInfinity - 1);
    if (first_bad_bucket(codes, k) < codes.scales)
      throw PackError(
          "pack: a scale of a codes packet must be positive where a code is not that "
          "of 0, got 0. Send code 2^(width-1), of dynamic8 127.");
  } else if (first_bad_value(codes.scale, codes.scales, true) < codes.scales) {
    throw PackError("pack: the scales of a codes packet must be finite. Scale the tensor down.");
  } else if (is_float(codes.table) && first_bad_float(codes.bits, k, codes.table) < k) {
    throw PackError("pack: 16-bit floats must be finite. Scale the tensor down.");
  }
  message->byte(static_cast<uint8_t>(codes.table));
  message->byte(static_cast<uint8_t>(codes.width));
  message->varint(static_cast<uint64_t>(codes.bucket));
  put_floats(message, arrays.scale, arrays.scales);
  if (arrays.bytes > 0) message->borrow(arrays.bits, arrays.bytes);
}

}  // namespace gcext::wire
