#include "targets.h"

#include <cmath>

#include "wire/merged.h"
#include "wire/prefix.h"

namespace gcext::fuzz {

using namespace wire;

Counts& counts() {
  static Counts all;
  return all;
}

namespace {

bool same(const Verdict& a, const Verdict& b) {
  if ((a.code == nullptr) != (b.code == nullptr)) return false;
  return a.code == nullptr ||
         (std::strcmp(a.code, b.code) == 0 && a.field == b.field && a.offset == b.offset);
}

// The shapes of an accepted message.
Expectation expectation_of(const Bytes& message) {
  Cursor cursor = open_checked(message);
  Body body = take_body(&cursor, false);
  Expectation shapes;
  shapes.group = body.method == kGroup;
  for (int64_t i = body.members; shapes.group && i > 0; --i) {
    const Body member = take_body(&cursor, true);
    shapes.shapes.emplace_back(member.dims, member.dims + member.ndim);
  }
  if (!shapes.group) shapes.shapes.emplace_back(body.dims, body.dims + body.ndim);
  return shapes;
}

// Another shape, kind or number of members.
Expectation other_than(Expectation shapes, Random* random) {
  switch (random->below(3)) {
    case 0:
      shapes.group = !shapes.group;
      if (!shapes.group) shapes.shapes.resize(1);
      return shapes;
    case 1:
      if (shapes.group) {
        shapes.shapes.emplace_back();
        return shapes;
      }
      [[fallthrough]];
    default: {
      auto& shape = shapes.shapes[static_cast<size_t>(
          random->below(static_cast<int64_t>(shapes.shapes.size())))];
      if (shape.empty() || random->once_in(3))
        shape.push_back(1);
      else
        shape.back() = random->once_in(2) ? kNoDim : shape.back() ^ 1;
      return shapes;
    }
  }
}

// The buffer belongs to another: it may change between the check and the reading. Whatever is read
// then, it is an error or numbers, and nothing outside the arrays is touched.
void read_changed(Bytes message, Random* random) {
  Cursor cursor = open_checked(message);
  Message out;
  Arrays arrays;
  Body body = take_body(&cursor, false);
  const auto begin = static_cast<int64_t>(body.start - message.data());
  const auto size = static_cast<int64_t>(message.size()) - begin - kChecksumBytes;
  for (int64_t i = random->within(1, 3); i > 0; --i) {
    const int64_t at = begin + random->below(size), bytes = random->within(1, 4);
    for (int64_t j = at; j < std::min(at + bytes, begin + size); ++j)
      message[static_cast<size_t>(j)] = static_cast<uint8_t>(random->next());
  }
  try {
    if (body.method == kGroup) body = take_body(&cursor, true);
    const bool read_alone = random->once_in(2);
    if (!read_alone) check_body(body, cursor);
    put_body(&out, body, cursor, &arrays);
  } catch (const DecodeError&) {
  } catch (const PackError&) {
  }
}

// What a message costs is the least budget that accepts it.
void check_budget(const Bytes& message) {
  Cost spent;
  if (decode_within(message, {kUnlimited, kUnlimited}, nullptr, false, &spent).code != nullptr)
    broken("refused without a limit");
  if (spent.work == 0) return;  // a build that counts nothing
  if (decode_within(message, spent).code != nullptr) broken("refused for what it costs");
  const Verdict work = decode_within(message, {spent.work - 1, spent.memory}),
                memory = decode_within(message, {spent.work, spent.memory - 1});
  for (const Verdict& less : {work, memory}) {
    if (less.code == nullptr || std::strcmp(less.code, "budget") != 0)
      broken("accepted for less than it costs");
    ++counts().refused[place_of(less.code)];
  }
}

}  // namespace

void run_round_trip(const Bytes& message) {
  if (decode(message).code != nullptr) return;
  Random random(digest(message.data(), static_cast<int64_t>(message.size())));
  set_parts(random.within(1, 5));
  if (pack_again(message) != message) broken("pack(unpack(m)) is not m");
  Bytes part = message;
  part.resize(static_cast<size_t>(random.below(static_cast<int64_t>(message.size()))));
  seal(&part);
  if (decode(part).code == nullptr) broken("a part of a message is a message");
  part = message;
  part.insert(part.end() - kChecksumBytes, static_cast<uint8_t>(random.next()));
  seal(&part);
  const Verdict longer = decode(part);
  if (longer.code == nullptr || std::strcmp(longer.code, "length") != 0)
    broken("a message and more is a message");
}

void run_inspect(const Bytes& message) {
  std::vector<Field> fields;
  bool whole = false;
  try {
    Cursor cursor = open_frame(message.data(), static_cast<int64_t>(message.size()), &fields);
    const Body body = take_body(&cursor, false);
    for (int64_t i = 0; i < (body.method == kGroup ? body.members : 0); ++i) {
      cursor.scope("members[" + std::to_string(i) + "].");
      take_body(&cursor, true);
    }
    whole = cursor.left() == 0;
  } catch (const DecodeError&) {
  }
  int64_t end = 0;
  for (const Field& field : fields) {
    if (field.offset != end || field.bytes < 0 || field.name.empty()) broken("a gap in the trace");
    if (field.missing < 0 || (field.missing > 0 && &field != &fields.back()))
      broken("fields after one that is cut");
    end += field.bytes;
  }
  const auto size = static_cast<int64_t>(message.size());
  if (end > size || (whole && end != size - kChecksumBytes)) broken("a trace of another length");
}

void run_decode(const Bytes& message) {
  set_parts(1);
  const Verdict verdict = decode(message);
  if (verdict.code != nullptr) {
    ++counts().refused[place_of(verdict.code)];
  } else {
    ++counts().accepted[message[kHeadBytes]];
  }
  Random random(digest(message.data(), static_cast<int64_t>(message.size())));
  // What follows is in parts too, where there is enough of it.
  set_parts(random.within(2, 5));
  if (static_cast<int64_t>(message.size()) > kPrefixTile / 8 && !same(decode(message), verdict))
    broken("another verdict in parts");
  if (random.once_in(4)) run_inspect(message);
  const Verdict closed = decode(message, nullptr, true);
  if (verdict.code == nullptr) {
    if (closed.code != nullptr) broken("refused for a device, accepted for the host");
    run_round_trip(message);
    if (random.once_in(4)) {
      const Expectation shapes = expectation_of(message);
      const Verdict expected = decode(message, &shapes);
      if (expected.code != nullptr && std::strcmp(expected.code, "budget") != 0)
        broken("refused though of the expected shape");
      if (expected.code != nullptr) ++counts().refused[place_of("budget")];
      const Expectation other = other_than(shapes, &random);
      const Verdict refused = decode(message, &other);
      // The budget of a group's first members comes before the shapes of its last.
      if (refused.code == nullptr ||
          (std::strcmp(refused.code, "expect") != 0 && std::strcmp(refused.code, "budget") != 0))
        broken("accepted though of another shape");
      ++counts().refused[place_of(refused.code)];
    }
    if (random.once_in(8)) check_budget(message);
    // Of one size of polar code alone: the others' frozen sets stay unknown.
    if (random.once_in(1000))
      expect_polar(random.once_in(4) ? -1 : random.once_in(4) ? 30 : 6, random.within(-1, 11));
    read_changed(message, &random);
  } else {
    const Expectation scalar{false, {{}}};
    const Verdict expecting = decode(message, &scalar);
    if (expecting.code == nullptr) broken("an expectation makes a message acceptable");
    // A device opens the streams itself: what it finds there is not known here.
    if (closed.code != nullptr && !same(closed, verdict) &&
        std::strcmp(verdict.field.c_str() + (verdict.field.rfind('.') + 1), "tiles") != 0 &&
        std::strcmp(verdict.code, "unary") != 0)
      broken("another error for a device");
  }
}

void run_merge(const Bytes& message) {
  if (decode(message).code != nullptr) return;
  Cursor cursor = open_checked(message);
  const Body group = take_body(&cursor, false);
  if (group.method != kGroup) return;
  Arrays arrays;
  std::vector<Part> parts;
  std::vector<Body> bodies;
  for (int64_t i = 0; i < group.members; ++i) {
    const Body body = take_body(&cursor, true);
    if (body.method != kTernary || (!bodies.empty() && body.numel != bodies[0].numel)) continue;
    float* value = arrays.make<float>(body.k);
    if (body.k > 0) read_ternary_values(body, value);
    void* index;
    if (body.narrow()) {
      index = arrays.make<int32_t>(body.k);
      read_index(body, cursor, static_cast<int32_t*>(index));
    } else {
      index = arrays.make<int64_t>(body.k);
      read_index(body, cursor, static_cast<int64_t*>(index));
    }
    parts.push_back({index, body.narrow(), value, body.k, body.scale});
    bodies.push_back(body);
  }
  Random random(digest(message.data(), static_cast<int64_t>(message.size())));
  const bool hostile = !parts.empty() && random.once_in(4);
  if (hostile) {  // of arrays, not of a message: merge checks them itself
    Part& part =
        random.of(const_cast<const std::vector<Part>&>(parts)).k > 0 ? parts[0] : parts.back();
    if (part.k > 0) {
      const auto at = static_cast<size_t>(random.below(part.k));
      const int64_t wrong = random.once_in(2) ? -1 : static_cast<int64_t>(random.next());
      if (part.narrow)
        static_cast<int32_t*>(const_cast<void*>(part.index))[at] = static_cast<int32_t>(wrong);
      else
        static_cast<int64_t*>(const_cast<void*>(part.index))[at] = wrong;
    }
  }
  std::vector<int64_t> index;
  std::vector<float> value;
  Members members;
  const int64_t numel = bodies.empty() ? 0 : bodies[0].numel;
  try {
    merge(parts, numel, &index, &value, &members);
  } catch (const PackError&) {
    return;
  }
  const auto k = static_cast<int64_t>(index.size());
  Message out;
  put_head(&out, kMerged, bodies[0].dtype, {numel});
  put_merged(&out, numel, index.data(), k, members);
  const Bytes merged = written(out);
  if (decode(merged).code != nullptr) broken("what merge made is refused");
  std::vector<std::vector<int64_t>> own(parts.size());
  std::vector<std::vector<float>> values(parts.size());
  std::vector<int64_t*> to_index;
  std::vector<float*> to_value;
  for (size_t j = 0; j < parts.size(); ++j) {
    own[j].resize(static_cast<size_t>(parts[j].k));
    values[j].resize(own[j].size());
    to_index.push_back(own[j].data());
    to_value.push_back(values[j].data());
  }
  unmerge(members, index.data(), to_index, to_value);
  for (size_t j = 0; j < parts.size(); ++j)
    for (size_t i = 0; i < own[j].size(); ++i) {
      const int64_t at = parts[j].narrow ? static_cast<const int32_t*>(parts[j].index)[i]
                                         : static_cast<const int64_t*>(parts[j].index)[i];
      if (own[j][i] != at || values[j][i] != parts[j].value[i])
        broken("unmerge(merge(p)) is not p");
    }
  // The exact sums, rounded once: in 80 bits of a few scales alike they are exact.
  for (size_t i = 0, m = 0; i < index.size(); ++i) {
    long double sum = 0;
    float low = INFINITY, high = 0;
    for (;
         m < members.place.size() && members.place[m] / members.parts() == static_cast<int64_t>(i);
         ++m) {
      const float scale = members.scale[static_cast<size_t>(members.place[m] % members.parts())];
      low = std::min(low, scale), high = std::max(high, scale);
      sum += members.negative[m] != 0 ? -static_cast<long double>(scale)
                                      : static_cast<long double>(scale);
    }
    if (high <= 0x1p30f * low && static_cast<float>(sum) != value[i]) broken("a sum is not exact");
  }
}

}  // namespace gcext::fuzz
