#include "merged.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "../bits.h"
#include "exact_sum.h"
#include "fields.h"

namespace gcext::wire {
namespace {

// Sums members one element at a time. Where the scales lie close together, doubles hold every sum
// without a rounding, and the conversion to float32 is the only one.
class Summer {
 public:
  explicit Summer(const std::vector<float>& scale) : scale_(scale), narrow_(scale.size() <= 64) {
    int low = 255, high = 0;
    for (const float s : scale) {
      uint32_t word;
      std::memcpy(&word, &s, 4);
      if (word == 0) continue;
      low = std::min(low, static_cast<int>(word >> 23));
      high = std::max(high, static_cast<int>(word >> 23));
    }
    // 24 bits of mantissa, 22 of spread, 6 of carries: 52. Far above denormals, which a caller's
    // flush mode would touch.
    narrow_ = narrow_ && high - low <= 22 && low >= 64;
  }

  void add(int64_t part, bool negative) {
    const float s = scale_[static_cast<size_t>(part)];
    if (narrow_)
      near_ += negative ? -static_cast<double>(s) : static_cast<double>(s);
    else
      far_.add(s, negative);
  }

  // The sum so far, and starts again.
  float take() {
    const float sum = narrow_ ? static_cast<float>(near_) : far_.rounded();
    near_ = 0;
    if (!narrow_) far_ = ExactSum();
    return sum;
  }

 private:
  const std::vector<float>& scale_;
  bool narrow_;
  double near_ = 0;
  ExactSum far_;
};

// count * parts, or the largest number where that is larger: a bound either way.
int64_t places(int64_t count, int64_t parts) {
  int64_t product;
  return __builtin_mul_overflow(count, parts, &product) ? std::numeric_limits<int64_t>::max()
                                                        : product;
}

}  // namespace

void take_merged(Cursor* cursor, Body* body) {
  const uint8_t* place = cursor->at();
  body->parts = cursor->varint("parts");
  if (body->parts < 2 || body->parts > kMaxParts)
    cursor->fail("parts", "parts", place,
                 "must be in [2, " + std::to_string(kMaxParts) + "], got " +
                     std::to_string(body->parts) + ".");
  body->scales = take_floats(cursor, body->parts, "scales");
  for (int64_t j = 0; j < body->parts; ++j) {
    if (load_word(body->scales + 4 * j) >= kInfinity)
      cursor->fail("scale", "scales", body->scales + 4 * j, "must be 0, or positive and finite.");
  }
  take_k(cursor, body);
  if (body->k == 0) return;
  place = cursor->at();
  body->members = cursor->varint("members");
  if (body->members < body->k || body->members > places(body->k, body->parts))
    cursor->fail("member", "members", place,
                 "must be in [k, k * parts], got " + std::to_string(body->members) + ".");
  take_section(cursor, body->k, &body->index);
  body->rows.tiles_name = "members.tiles";
  body->rows.remainders_name = "members.remainders";
  body->rows.unary_name = "members.unary";
  take_section(cursor, body->members, &body->rows);
  body->signs = take_plane(cursor, body->members, "signs");
}

void read_members(const Body& body, const Cursor& cursor, float* value, Members* out) {
  Members members;
  members.scale.resize(static_cast<size_t>(body.parts));
  std::memcpy(members.scale.data(), body.scales, 4 * members.scale.size());
  std::vector<bool> used(members.scale.size());
  if (out != nullptr) {
    members.place.reserve(static_cast<size_t>(body.members));
    members.negative.reserve(static_cast<size_t>(body.members));
  }
  Summer summer(members.scale);
  SectionReader reader(body.rows, places(body.k, body.parts), cursor);
  int64_t place[kTile], element = 0, at = 0;
  const auto finish_element = [&] {
    const float sum = summer.take();
    if (!std::isfinite(sum))
      cursor.fail("value", "scales", body.scales,
                  "the sum of element " + std::to_string(element) + " must be finite.");
    if (value != nullptr) value[element] = sum;
    ++element;
  };
  while (const int64_t n = reader.next(place)) {
    for (int64_t i = 0; i < n; ++i, ++at) {
      const int64_t row = place[i] / body.parts, part = place[i] % body.parts;
      if (row > element) finish_element();
      if (row != element || (at == 0 && row != 0))
        cursor.fail("member", "members.tiles", body.rows.table,
                    "element " + std::to_string(element) + " has none.");
      const bool negative = (body.signs[at >> 3] >> (at & 7) & 1) != 0;
      summer.add(part, negative);
      used[static_cast<size_t>(part)] = true;
      if (out != nullptr) {
        members.place.push_back(place[i]);
        members.negative.push_back(negative ? 1 : 0);
      }
    }
  }
  if (body.k > 0) finish_element();
  if (element < body.k)
    cursor.fail("member", "members.tiles", body.rows.table,
                "element " + std::to_string(element) + " has none.");
  for (size_t j = 0; j < used.size(); ++j)
    if (used[j] != (members.scale[j] > 0))
      cursor.fail("scale", "scales", body.scales + 4 * j,
                  "must be 0 exactly where part " + std::to_string(j) + " is empty.");
  if (out != nullptr) *out = std::move(members);
}

void merge(const std::vector<Part>& parts, int64_t numel, std::vector<int64_t>* index,
           std::vector<float>* value, Members* members) {
  const uint64_t count = parts.size();
  if (count < 2 || count > kMaxParts)
    throw PackError("merge: the number of packets must be in [2, 4096], got " +
                    std::to_string(count) + ".");
  int64_t space;  // below 2^63, so that a key's lowest bit can hold the sign
  if (__builtin_mul_overflow(numel, static_cast<int64_t>(count), &space))
    throw PackError("merge: elements times packets must be below 2^63, got " +
                    std::to_string(numel) + " times " + std::to_string(count) +
                    ". Merge fewer packets.");

  // 1. Every element of every part as one key, (index, part, sign) from high to low: rising per
  //    part, so log2 J rounds of pairwise merging sort them all.
  std::vector<uint64_t> key, spare;
  std::vector<std::ptrdiff_t> run(1, 0);
  for (uint64_t j = 0; j < count; ++j) {
    const Part& part = parts[j];
    members->scale.push_back(part.scale);
    int64_t previous = -1;
    for (int64_t i = 0; i < part.k; ++i) {
      const int64_t at = part.narrow ? static_cast<const int32_t*>(part.index)[i]
                                     : static_cast<const int64_t*>(part.index)[i];
      if (at <= previous || at >= numel)
        throw PackError("merge: index must rise strictly below the number of elements, got " +
                        std::to_string(at) + " in packet " + std::to_string(j) + ".");
      previous = at;
      key.push_back((static_cast<uint64_t>(at) * count + j) * 2 +
                    (std::signbit(part.value[i]) ? 1 : 0));
    }
    run.push_back(static_cast<std::ptrdiff_t>(key.size()));
  }
  spare.resize(key.size());
  while (run.size() > 2) {
    std::vector<std::ptrdiff_t> longer(1, 0);
    for (size_t r = 0; r + 1 < run.size(); r += 2) {
      const std::ptrdiff_t end = r + 2 < run.size() ? run[r + 2] : run[r + 1];
      const auto first = key.begin();
      std::merge(first + run[r], first + run[r + 1], first + run[r + 1], first + end,
                 spare.begin() + run[r]);
      longer.push_back(end);
    }
    key.swap(spare);
    run.swap(longer);
  }

  // 2. Cut the keys into elements.
  Summer summer(members->scale);
  members->place.reserve(key.size());
  members->negative.reserve(key.size());
  for (size_t i = 0; i < key.size();) {
    const uint64_t at = key[i] / (2 * count), begin = at * 2 * count;
    for (; i < key.size() && key[i] - begin < 2 * count; ++i) {
      const int64_t part = static_cast<int64_t>((key[i] - begin) >> 1);
      members->place.push_back(static_cast<int64_t>(index->size() * count) + part);
      members->negative.push_back(key[i] & 1);
      summer.add(part, (key[i] & 1) != 0);
    }
    index->push_back(static_cast<int64_t>(at));
    value->push_back(summer.take());
    if (!std::isfinite(value->back()))
      throw PackError(
          "merge: the sum of the packets must be finite in float32, got more at index " +
          std::to_string(at) + ". Send them one by one.");
  }
}

template <class Index>
void put_merged(Message* message, int64_t numel, const Index* index, int64_t k,
                const Members& members) {
  message->varint(static_cast<uint64_t>(members.parts()));
  for (const float scale : members.scale) {
    uint32_t word;
    std::memcpy(&word, &scale, 4);
    message->word(word);
  }
  message->varint(static_cast<uint64_t>(k));
  if (k == 0) return;
  const auto count = static_cast<int64_t>(members.place.size());
  message->varint(static_cast<uint64_t>(count));
  message->own(pack_section(index, k, numel));
  message->own(pack_section(members.place.data(), count, places(k, members.parts())));
  std::vector<uint8_t> signs(static_cast<size_t>(plane_bytes(count, 1)));
  for (size_t i = 0; i < members.negative.size(); ++i)
    signs[i >> 3] |= static_cast<uint8_t>((members.negative[i] & 1) << (i & 7));
  message->own(std::move(signs));
}

template <class Index>
void unmerge(const Members& members, const Index* union_index, std::vector<Index*> index,
             std::vector<float*> value) {
  for (size_t i = 0; i < members.place.size(); ++i) {
    const auto part = static_cast<size_t>(members.place[i] % members.parts());
    *index[part]++ = union_index[members.place[i] / members.parts()];
    *value[part]++ = members.negative[i] != 0 ? -members.scale[part] : members.scale[part];
  }
}

template void put_merged(Message*, int64_t, const int32_t*, int64_t, const Members&);
template void put_merged(Message*, int64_t, const int64_t*, int64_t, const Members&);
template void unmerge(const Members&, const int32_t*, std::vector<int32_t*>, std::vector<float*>);
template void unmerge(const Members&, const int64_t*, std::vector<int64_t*>, std::vector<float*>);

}  // namespace gcext::wire
