#include "tuples.h"

#include <pybind11/stl.h>

#include "../bits.h"
#include "coded.h"
#include "levels.h"

namespace gcext::wire {
namespace {

// The support of a coded body, and k.
int64_t put_support(Message* message, Method method, int64_t numel, const py::handle& support) {
  const auto allowed = [&](Support kind) {
    if (!support_allowed(method, kind))
      throw PackError("pack: the method must have the support, got method " +
                      std::to_string(method) + " with a support of " +
                      (kind == kAll       ? "all elements"
                       : kind == kIndices ? "indices"
                                          : "random elements") +
                      ". Send another method.");
  };
  if (support.is_none()) {
    allowed(kAll);
    put_support(message, kAll, numel, 0);
    return numel;
  }
  if (py::isinstance<py::tuple>(support)) {
    allowed(kDrawn);
    const auto drawn = py::reinterpret_borrow<py::tuple>(support);
    const auto k = drawn[1].cast<int64_t>();
    if (k < 0 || k > numel)
      throw PackError("pack: k must be in [0, " + std::to_string(numel) + "], got " +
                      std::to_string(k) + ". Draw fewer elements.");
    put_support(message, kDrawn, k, drawn[0].cast<uint64_t>());
    return k;
  }
  allowed(kIndices);
  return with_index(support, [&](const auto& index) {
    const int64_t k = index.size();
    put_support(message, kIndices, k, 0);
    const py::gil_scoped_release release;
    message->own(pack_section(index.data(), k, numel));
    return k;
  });
}

void put_coded(Message* message, Method method, int64_t numel, const py::tuple& body) {
  const int64_t k = put_support(message, method, numel, body[3]);
  if (method == kRandom) {
    const auto value = checked<float>(body[4], "value");
    put_random(message, k, value.data(), value.size());
  } else if (method == kSign) {
    const auto bits = checked<uint8_t>(body[5], "bits");
    put_sign(message, k, body[4].cast<float>(), bits.data(), bits.size());
  } else if (method == kLevels) {
    const auto norm = checked<float>(body[6], "norms");
    const auto level = checked<int16_t>(body[8], "level");
    const LevelArrays arrays{body[4].cast<int64_t>(),
                             body[5].cast<int64_t>(),
                             norm.data(),
                             norm.size(),
                             level.data(),
                             level.size()};
    with_index(body[7], [&](const auto& at) {
      const py::gil_scoped_release release;
      put_levels(message, k, arrays, at.data(), at.size());
    });
  } else {
    const auto bits = checked<uint8_t>(body[4], "message");
    const auto scale = checked<float>(body[8], "scale");
    const bool rotated = !body[9].is_none();
    put_polar(message, k,
              {body[5].cast<int64_t>(), body[6].cast<int64_t>(), body[7].cast<bool>(), rotated,
               rotated ? body[9].cast<uint64_t>() : 0, scale.data(), scale.size(), bits.data(),
               bits.size()});
  }
}

// A ternary body whose streams, from the tile table to the signs, a device has made.
void put_made(Message* message, const py::tuple& body) {
  const auto made = py::reinterpret_borrow<py::tuple>(body[3]);
  const auto streams = checked<uint8_t>(made[1], "streams");
  put_ternary_head(message, made[0].cast<int64_t>(), body[4].cast<float>());
  if (streams.size() > 0) message->borrow(streams.data(), streams.size());
}

template <class Index>
py::object index_of(const Body& body, const Cursor& cursor) {
  py::array_t<Index> index(body.k);
  Index* out = index.mutable_data();
  {
    const py::gil_scoped_release release;
    read_index(body, cursor, out);
  }
  return index;
}

py::object support_of(const Body& body, const Cursor& cursor) {
  if (body.support == kAll) return py::none();
  if (body.support == kDrawn) return py::make_tuple(body.seed, body.k);
  return body.narrow() ? index_of<int32_t>(body, cursor) : index_of<int64_t>(body, cursor);
}

template <class Index>
py::tuple levels_of(const Body& body, const Cursor& cursor) {
  const LevelFields& fields = body.levels;
  py::array_t<Index> at(fields.places);
  py::array_t<int16_t> level(fields.places);
  Index* at_out = at.mutable_data();
  int16_t* level_out = level.mutable_data();
  {
    const py::gil_scoped_release release;
    read_levels(body, cursor, at_out, level_out);
  }
  return py::make_tuple(fields.steps, fields.bucket, array_of<float>(fields.norm, fields.norms), at,
                        level);
}

// The values of a coded body, in the order of gcext/_wire.pyi.
py::tuple values_of(const Body& body, const Cursor& cursor) {
  switch (body.method) {
    case kRandom:
      return py::make_tuple(array_of<float>(body.values, body.k));
    case kSign:
      return py::make_tuple(body.scale, array_of<uint8_t>(body.signs, plane_bytes(body.k, 1)));
    case kLevels:
      return body.narrow() ? levels_of<int32_t>(body, cursor) : levels_of<int64_t>(body, cursor);
    default: {
      const PolarFields& polar = body.polar;
      py::object seed = py::none();
      if (polar.rotated) seed = py::int_(polar.seed);
      return py::make_tuple(array_of<uint8_t>(polar.message, polar.bytes), polar.block, polar.kept,
                            polar.soft, array_of<float>(polar.scale, polar.scales), seed);
    }
  }
}

py::tuple read_coded(const Body& body, const Cursor& cursor, const py::tuple& shape) {
  return py::make_tuple(int{body.method}, int{body.dtype}, shape, support_of(body, cursor)) +
         values_of(body, cursor);
}

// (k, begin, end, remainder_bytes, the scale's bits), scale: docs/wire-format.md has the streams
// between the scale and the end of the signs.
py::tuple read_closed(const Body& body, const Cursor& cursor, const py::tuple& shape) {
  uint32_t scale_bits;
  std::memcpy(&scale_bits, &body.scale, 4);
  const py::tuple located = py::make_tuple(body.k, cursor.offset_of(body.index.table),
                                           cursor.offset_of(body.signs) + plane_bytes(body.k, 1),
                                           body.index.remainder_bytes, scale_bits);
  return py::make_tuple(int{body.method}, int{body.dtype}, shape, located, body.scale);
}

template <class Index>
py::tuple read_body_as(const Body& body, const Cursor& cursor, const py::tuple& shape) {
  py::array_t<Index> index(body.k);
  py::array_t<float> value(body.k);
  Index* index_out = index.mutable_data();
  float* value_out = value.mutable_data();
  Members members;
  {
    const py::gil_scoped_release release;
    read_index(body, cursor, index_out);
    if (body.method == kTernary && body.k > 0) read_ternary_values(body, value_out);
    if (body.method == kSparse && body.k > 0)
      std::memcpy(value_out, body.values, 4 * static_cast<size_t>(body.k));
    if (body.method == kMerged) read_members(body, cursor, value_out, &members);
  }
  if (body.method == kMerged)
    return py::make_tuple(int{body.method}, int{body.dtype}, shape, index, value,
                          array_of(members.scale), array_of(members.place),
                          array_of(members.negative));
  if (body.method == kTernary)
    return py::make_tuple(int{body.method}, int{body.dtype}, shape, index, value, body.scale);
  return py::make_tuple(int{body.method}, int{body.dtype}, shape, index, value);
}

}  // namespace

void check_length(int64_t k, py::ssize_t values, const char* name) {
  if (k != values)
    throw PackError(std::string("pack: ") + name + " must be as long as index, " +
                    std::to_string(k) + ", got " + std::to_string(values) + ".");
}

Members members_of(const py::tuple& body, int64_t k) {
  Members members;
  members.scale = vector_of<float>(body[5], "scales");
  members.place = vector_of<int64_t>(body[6], "place");
  members.negative = vector_of<uint8_t>(body[7], "negative");
  bool fits = members.scale.size() >= 2 && members.negative.size() == members.place.size();
  int64_t previous = -1, parts = members.parts();
  for (const int64_t place : members.place) {
    fits = fits && place > previous && place / parts < k;
    previous = place;
  }
  if (!fits)
    throw PackError(
        "pack: a merged body's scales, places and signs do not fit together. Use merge.");
  return members;
}

void put_body(Message* message, const py::tuple& body) {
  const int method = body[0].cast<int>();
  if (method < kDense || method > kPolar || method == kGroup)
    throw PackError("pack: method must be a code of one packet, in [1, 9] and not 5, got " +
                    std::to_string(method) + ".");
  const int64_t numel = put_head(message, static_cast<Method>(method), body[1].cast<int>(),
                                 body[2].cast<std::vector<int64_t>>());
  if (method == kDense) {
    const auto value = checked<float>(body[3], "value");
    const py::gil_scoped_release release;
    put_dense(message, numel, value.data(), value.size());
    return;
  }
  if (method > kGroup) {
    put_coded(message, static_cast<Method>(method), numel, body);
    return;
  }
  if (method == kTernary && py::isinstance<py::tuple>(body[3])) {
    put_made(message, body);
    return;
  }
  with_index(body[3], [&](const auto& index) {
    const int64_t k = index.size();
    if (method == kMerged) {
      const Members members = members_of(body, k);
      const py::gil_scoped_release release;
      put_merged(message, numel, index.data(), k, members);
      return;
    }
    const auto value = checked<float>(body[4], "value");
    check_length(k, value.size(), "value");
    const float scale = method == kTernary ? body[5].cast<float>() : 0;
    const py::gil_scoped_release release;
    if (method == kSparse)
      put_sparse(message, numel, index.data(), value.data(), k);
    else
      put_ternary(message, numel, index.data(), value.data(), k, scale);
  });
}

py::tuple read_body(const Body& body, const Cursor& cursor, bool closed) {
  py::tuple shape(body.ndim);
  for (int i = 0; i < body.ndim; ++i) shape[static_cast<size_t>(i)] = py::int_(body.dims[i]);
  if (closed && can_stay_closed(body)) return read_closed(body, cursor, shape);
  if (body.method == kDense)
    return py::make_tuple(int{body.method}, int{body.dtype}, shape,
                          array_of<float>(body.values, body.k));
  if (body.method > kGroup) return read_coded(body, cursor, shape);
  return body.narrow() ? read_body_as<int32_t>(body, cursor, shape)
                       : read_body_as<int64_t>(body, cursor, shape);
}

}  // namespace gcext::wire
