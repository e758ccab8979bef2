#include "mutate.h"

#include <algorithm>

#include "wire/sum.h"

namespace gcext::fuzz {
namespace {

using namespace wire;

// What the bytes of a field are.
enum class Kind { byte, number, floats, tiles, sizes, seed, bits };

Kind kind_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  const std::string own = dot == std::string::npos ? name : name.substr(dot + 1);
  const auto is = [&](std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](const char* each) { return own == each; });
  };
  if (is({"tiles"})) return Kind::tiles;
  if (is({"sizes"})) return Kind::sizes;
  if (is({"seed"})) return Kind::seed;
  if (is({"scale", "scales", "values", "norms", "cells", "left", "right"})) return Kind::floats;
  if (is({"method", "type", "support", "table", "flags", "block", "width", "rows", "edge", "inner",
          "most", "magic", "version"}))
    return Kind::byte;
  if (is({"dims", "k", "count", "parts", "members", "steps", "bucket", "places", "kept", "symbols",
          "cols", "rank"}))
    return Kind::number;
  return Kind::bits;
}

// Every field of the message as far as it can be read, as the seam's trace.
std::vector<Field> fields_of(const Bytes& message) {
  std::vector<Field> fields;
  try {
    Cursor cursor = open_frame(message.data(), static_cast<int64_t>(message.size()), &fields);
    const Body body = take_body(&cursor, false);
    for (int64_t i = 0; i < (body.method == kGroup ? body.members : 0) && i < 200; ++i)
      take_body(&cursor, true);
  } catch (const DecodeError&) {
  }
  return fields;
}

Bytes number_bytes(Random* random, int64_t old) {
  const int64_t more = old == INT64_MAX ? 0 : old + 1;
  const int64_t near[] = {more, old - 1, more, old - 1, 2 * (old & INT32_MAX), old / 2};
  constexpr int64_t kEdges[] = {0,
                                1,
                                2,
                                3,
                                7,
                                15,
                                63,
                                64,
                                65,
                                127,
                                128,
                                1023,
                                1024,
                                1025,
                                4095,
                                4096,
                                4097,
                                32767,
                                32768,
                                1 << 20,
                                INT32_MAX,
                                int64_t{1} << 31,
                                int64_t{1} << 32,
                                int64_t{1} << 59,
                                int64_t{1} << 61,
                                (int64_t{1} << 62) - 1,
                                int64_t{1} << 62,
                                INT64_MAX};
  auto value = static_cast<uint64_t>(random->once_in(2) ? random->of(near) : random->of(kEdges)) &
               static_cast<uint64_t>(INT64_MAX);
  Bytes bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<uint8_t>(value | 0x80));
  bytes.push_back(static_cast<uint8_t>(value));
  if (random->once_in(20)) {  // not minimal, or too long
    bytes.back() |= 0x80;
    while (random->once_in(2) || bytes.size() > 7) {
      if (bytes.size() > 12) break;
      bytes.push_back(0x80);
    }
    bytes.push_back(random->once_in(3) ? 1 : 0);
  }
  return bytes;
}

class Mutation {
 public:
  Mutation(Random* random, Bytes* message, const Bytes& other)
      : random_(random), message_(message), other_(other) {}

  void run() {
    std::vector<Field> fields = fields_of(*message_);
    fields.erase(std::remove_if(fields.begin(), fields.end(),
                                [](const Field& each) { return each.bytes == 0; }),
                 fields.end());
    if (fields.empty() || random_->once_in(12)) return anywhere();
    // Long arrays would take most of the mutations, were it by bytes; the last fields of many few.
    const Field field = random_->of(fields);
    if (field.offset < kHeadBytes && !random_->once_in(4)) return change(random_->of(fields));
    change(field);
  }

 private:
  void change(const Field& field) {
    const auto at = static_cast<size_t>(field.offset), bytes = static_cast<size_t>(field.bytes);
    if (random_->once_in(10)) return move(field);
    if (field.missing > 0) return change_bits(message_->data() + at, bytes);  // cut short
    uint8_t* const first = message_->data() + at;
    switch (kind_of(field.name)) {
      case Kind::byte:
        *first = static_cast<uint8_t>(random_->once_in(3)   ? *first ^ (1 << random_->below(8))
                                      : random_->once_in(2) ? *first + random_->within(-1, 1)
                                                            : random_->below(20));
        return;
      case Kind::number:
        return replace(at, bytes, number_bytes(random_, field.value));
      case Kind::floats: {
        const auto place = static_cast<size_t>(random_->below(static_cast<int64_t>(bytes / 4)));
        const uint32_t word = random_->float_bits();
        std::memcpy(first + 4 * place, &word, 4);
        return;
      }
      case Kind::tiles: {
        uint8_t* entry = first + 3 * random_->below(static_cast<int64_t>(bytes / 3));
        if (random_->once_in(2)) {
          entry[0] = static_cast<uint8_t>(random_->once_in(4) ? random_->below(66)
                                                              : entry[0] + random_->within(-1, 1));
        } else {
          const int zeros = (entry[1] | entry[2] << 8) + static_cast<int>(random_->within(-2, 2));
          entry[1] = static_cast<uint8_t>(zeros);
          entry[2] = static_cast<uint8_t>(zeros >> 8);
        }
        return;
      }
      case Kind::sizes: {
        uint8_t* entry = first + 3 * random_->below(static_cast<int64_t>(bytes / 3));
        entry[0] = static_cast<uint8_t>(entry[0] + random_->within(-3, 3));
        return;
      }
      case Kind::seed:
        first[random_->below(8)] = static_cast<uint8_t>(random_->next());
        return;
      default:
        return change_bits(first, bytes);
    }
  }

  // Streams: one bit; two bits, so that a count of ones stays; the last byte's padding.
  void change_bits(uint8_t* first, size_t bytes) {
    const auto flip = [&](int64_t bit) {
      first[bit >> 3] = static_cast<uint8_t>(first[bit >> 3] ^ 1 << (bit & 7));
    };
    const auto bits = static_cast<int64_t>(8 * bytes);
    switch (random_->below(5)) {
      case 0:
        return flip(bits - 1 - random_->below(8));
      case 1: {
        const int64_t bit = random_->below(std::max<int64_t>(1, bits - 1));
        flip(bit);
        if (bit + 1 < bits) flip(bit + 1);
        return;
      }
      case 2:
        std::memset(first, random_->once_in(2) ? 0 : 0xff, bytes);
        return;
      default:
        flip(random_->below(bits));
    }
  }

  // The whole field: left out, doubled, or another message's field of that name.
  void move(const Field& field) {
    const auto at = static_cast<size_t>(field.offset), bytes = static_cast<size_t>(field.bytes);
    switch (random_->below(3)) {
      case 0:
        return replace(at, bytes, {});
      case 1: {
        const Bytes twice(message_->begin() + static_cast<std::ptrdiff_t>(at),
                          message_->begin() + static_cast<std::ptrdiff_t>(at + bytes));
        return replace(at, 0, twice);
      }
      default:
        for (const Field& each : fields_of(other_)) {
          if (each.name != field.name || each.bytes == 0) continue;
          const auto first = other_.begin() + static_cast<std::ptrdiff_t>(each.offset);
          return replace(at, bytes, Bytes(first, first + static_cast<std::ptrdiff_t>(each.bytes)));
        }
    }
  }

  // Bytes, whatever they are.
  void anywhere() {
    const size_t size = message_->size();
    const auto at = static_cast<size_t>(random_->below(static_cast<int64_t>(size) + 1));
    const size_t body_end = size > 8 ? size - 8 : size;
    switch (random_->below(6)) {
      case 0:  // cut in the body
        if (at < body_end) replace(at, body_end - at, {});
        return;
      case 1:  // cut, checksum and all
        message_->resize(at);
        return;
      case 2:
        return replace(std::min(at, body_end), 0,
                       Bytes(static_cast<size_t>(random_->within(1, 9)),
                             static_cast<uint8_t>(random_->next())));
      case 3: {  // behind the body
        const auto more = static_cast<size_t>(random_->within(1, 3));
        return replace(body_end, 0, Bytes(more, static_cast<uint8_t>(random_->next())));
      }
      case 4:
        return replace(at, std::min<size_t>(size - at, 3), {});
      default:
        if (at < size)
          (*message_)[at] = static_cast<uint8_t>((*message_)[at] ^ 1 << random_->below(8));
    }
  }

  void replace(size_t at, size_t bytes, const Bytes& with) {
    const auto first = message_->begin() + static_cast<std::ptrdiff_t>(at);
    const auto rest = message_->erase(first, first + static_cast<std::ptrdiff_t>(bytes));
    message_->insert(rest, with.begin(), with.end());
  }

  Random* random_;
  Bytes* message_;
  const Bytes& other_;
};

}  // namespace

void mutate(Random* random, Bytes* message, const Bytes& other, Checksum checksum) {
  for (int64_t i = random->once_in(3) ? random->within(2, 4) : 1; i > 0; --i)
    Mutation(random, message, other).run();
  if (message->size() > kLongest) message->resize(kLongest);
  if (checksum == Checksum::repaired && !random->once_in(100)) seal(message);
}

}  // namespace gcext::fuzz
