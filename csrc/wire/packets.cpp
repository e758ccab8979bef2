#include "packets.h"

#include <pybind11/stl.h>

#include <array>

#include "../bits.h"
#include "../common/fpenv.h"
#include "coded.h"
#include "levels.h"
#include "transforms.h"

namespace gcext::wire {
namespace {

using namespace py::literals;

constexpr std::array<const char*, kDct + 1> kMethodNames = {
    "",       "dense", "sparse", "ternary", "merged", "group",   "random", "sign",
    "levels", "polar", "",       "",        "",       "lowrank", "",       "dct"};
constexpr std::array<const char*, kDtypes> kDtypeNames = {"float32", "float16", "bfloat16",
                                                          "float64"};

template <size_t n>
int code_of(const std::array<const char*, n>& names, const std::string& name, const char* what) {
  for (size_t code = 0; code < n; ++code)
    if (name == names[code] && !name.empty()) return static_cast<int>(code);
  std::string known;
  for (const char* each : names)
    if (*each != 0) known += (known.empty() ? "" : ", ") + std::string(each);
  throw PackError(std::string("pack: ") + what + " must be one of " + known + ", got " + name +
                  ".");
}

// "torch.float32" or "float32".
int dtype_of(const py::handle& packet) {
  return code_of(kDtypeNames, dtype_name(py::getattr(packet, names().dtype)), "dtype");
}

std::vector<int64_t> shape_of(const py::handle& packet) {
  return py::getattr(packet, names().shape).cast<std::vector<int64_t>>();
}

// The support of a coded packet, and k.
int64_t put_support(Message* message, Method method, int64_t numel, const py::handle& support) {
  const auto allowed = [&](Support kind) {
    if (!support_allowed(method, kind))
      throw PackError(std::string("pack: a ") + kMethodNames[method] +
                      " packet does not come with a support of " +
                      (kind == kAll       ? "all elements."
                       : kind == kIndices ? "indices."
                                          : "random elements."));
  };
  if (support.is_none()) {
    allowed(kAll);
    put_support(message, kAll, numel, 0);
    return numel;
  }
  if (py::hasattr(support, "k")) {
    allowed(kDrawn);
    const auto k = support.attr("k").cast<int64_t>();
    if (k < 0 || k > numel)
      throw PackError("pack: k must be in [0, " + std::to_string(numel) + "], got " +
                      std::to_string(k) + ". Draw fewer elements.");
    put_support(message, kDrawn, k, support.attr("seed").cast<uint64_t>());
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

LevelArrays level_arrays(const Array<float>& norm, const Array<int16_t>& level,
                         const py::handle& code) {
  return {code.attr("steps").cast<int64_t>(),
          code.attr("bucket").cast<int64_t>(),
          norm.data(),
          norm.size(),
          level.data(),
          level.size()};
}

void put_coded(Message* message, Method method, int64_t numel, const py::handle& contents) {
  const int64_t k = put_support(message, method, numel, contents.attr("support"));
  const py::object code = contents.attr("coded");
  if (method == kRandom) {
    const auto value = checked<float>(code, "value");
    put_random(message, k, value.data(), value.size());
  } else if (method == kSign) {
    const auto bits = checked<uint8_t>(code.attr("bits"), "bits");
    put_sign(message, k, code.attr("scale").cast<float>(), bits.data(), bits.size());
  } else if (method == kLevels) {
    const auto norm = checked<float>(code.attr("norms"), "norms");
    const auto level = checked<int16_t>(code.attr("level"), "level");
    const LevelArrays arrays = level_arrays(norm, level, code);
    with_index(code.attr("at"), [&](const auto& at) {
      const py::gil_scoped_release release;
      put_levels(message, k, arrays, at.data(), at.size());
    });
  } else {
    const auto bits = checked<uint8_t>(code.attr("message"), "message");
    const auto scale = checked<float>(code.attr("scale"), "scale");
    const py::object seed = code.attr("seed");
    const bool rotated = !seed.is_none();
    put_polar(message, k,
              {code.attr("block").cast<int64_t>(), code.attr("kept").cast<int64_t>(),
               code.attr("soft").cast<bool>(), rotated, rotated ? seed.cast<uint64_t>() : 0,
               scale.data(), scale.size(), bits.data(), bits.size()});
  }
}

// A ternary packet whose streams, from the tile table to the signs, a device has encoded.
void put_encoded(Message* message, const py::handle& encoded) {
  const auto streams = checked<uint8_t>(encoded.attr("streams"), "streams");
  put_ternary_head(message, encoded.attr("k").cast<int64_t>(), encoded.attr("scale").cast<float>());
  if (streams.size() > 0) message->borrow(streams.data(), streams.size());
}

void check_length(int64_t k, py::ssize_t values) {
  if (k != values)
    throw PackError("pack: value must be as long as index, " + std::to_string(k) + ", got " +
                    std::to_string(values) + ".");
}

// The members of a merged packet of k elements.
Members members_of(const py::handle& packet, int64_t k) {
  const py::object merged = packet.attr("merged");
  if (merged.is_none()) throw PackError("pack: a merged packet needs its members. Use merge.");
  Members members;
  members.scale = vector_of<float>(merged.attr("scales"), "scales");
  members.place = vector_of<int64_t>(merged.attr("place"), "place");
  members.negative = vector_of<uint8_t>(merged.attr("negative"), "negative");
  bool fits = members.scale.size() >= 2 && members.negative.size() == members.place.size();
  int64_t previous = -1, parts = members.parts();
  for (const int64_t place : members.place) {
    fits = fits && place > previous && place / parts < k;
    previous = place;
  }
  if (!fits)
    throw PackError(
        "pack: a merged packet's scales, places and signs do not fit together. Use merge.");
  return members;
}

py::dict dict_of(const Members& members) {
  return py::dict("scales"_a = array_of(members.scale), "place"_a = array_of(members.place),
                  "negative"_a = array_of(members.negative));
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

py::object indices_of(const Body& body, const Cursor& cursor) {
  return body.narrow() ? index_of<int32_t>(body, cursor) : index_of<int64_t>(body, cursor);
}

py::object support_of(const Body& body, const Cursor& cursor) {
  if (body.support == kAll || body.method == kDct) return py::none();
  if (body.support == kDrawn) return py::dict("seed"_a = body.seed, "k"_a = body.k);
  return indices_of(body, cursor);
}

template <class Index>
py::dict levels_of(const Body& body, const Cursor& cursor) {
  const LevelFields& fields = body.levels;
  py::array_t<Index> at(fields.places);
  py::array_t<int16_t> level(fields.places);
  Index* at_out = at.mutable_data();
  int16_t* level_out = level.mutable_data();
  {
    const py::gil_scoped_release release;
    read_levels(body, cursor, at_out, level_out);
  }
  return py::dict("steps"_a = fields.steps, "bucket"_a = fields.bucket,
                  "norms"_a = array_of<float>(fields.norm, fields.norms), "at"_a = at,
                  "level"_a = level);
}

py::object float_values(const Body& body) { return array_of<float>(body.values, body.k); }

py::object ternary_values(const Body& body) {
  py::array_t<float> value(body.k);
  float* out = value.mutable_data();
  if (body.k > 0) {
    const py::gil_scoped_release release;
    read_ternary_values(body, out);
  }
  return value;
}

// The coded values of a body: float32, or the fields of a value code by name.
py::object coded_of(const Body& body, const Cursor& cursor) {
  switch (body.method) {
    case kTernary:
      return ternary_values(body);
    case kSign:
      return py::dict("scale"_a = body.scale,
                      "bits"_a = array_of<uint8_t>(body.signs, plane_bytes(body.k, 1)));
    case kLevels:
      return body.narrow() ? levels_of<int32_t>(body, cursor) : levels_of<int64_t>(body, cursor);
    case kPolar: {
      const PolarFields& polar = body.polar;
      py::object seed = py::none();
      if (polar.rotated) seed = py::int_(polar.seed);
      return py::dict("message"_a = array_of<uint8_t>(polar.message, polar.bytes),
                      "block"_a = polar.block, "kept"_a = polar.kept, "soft"_a = polar.soft,
                      "scale"_a = array_of<float>(polar.scale, polar.scales), "seed"_a = seed);
    }
    case kLowRank:
      return lowrank_fields(body);
    case kDct:
      return dct_fields(body, indices_of(body, cursor),
                        body.dct.ternary ? ternary_values(body) : float_values(body));
    default:  // dense, sparse, random
      return float_values(body);
  }
}

// Where the streams of a ternary body lie: docs/wire-format.md has them between the scale and the
// end of the signs.
py::dict located_of(const Body& body, const Cursor& cursor) {
  uint32_t scale_bits;
  std::memcpy(&scale_bits, &body.scale, 4);
  return py::dict("k"_a = body.k, "begin"_a = cursor.offset_of(body.index.table),
                  "end"_a = cursor.offset_of(body.signs) + plane_bytes(body.k, 1),
                  "remainder_bytes"_a = body.index.remainder_bytes, "scale_bits"_a = scale_bits);
}

}  // namespace

Method method_of(const py::handle& packet) {
  return static_cast<Method>(
      code_of(kMethodNames, py::getattr(packet, names().method).cast<std::string>(), "method"));
}

void put_packet(Message* message, const py::handle& packet) {
  const Method method = method_of(packet);
  if (method == kGroup) throw PackError("pack: a group must not be a member of a group.");
  const std::vector<int64_t> shape = shape_of(packet);
  const int64_t numel = put_head(message, method, dtype_of(packet), shape);
  const py::object encoded = py::getattr(packet, names().encoded);
  if (method == kTernary && !encoded.is_none()) return put_encoded(message, encoded);
  const py::object contents = py::getattr(packet, names()._contents);
  if (method == kDense) {
    const auto value = checked<float>(py::getattr(contents, names().coded), "value");
    const py::gil_scoped_release release;
    return put_dense(message, numel, value.data(), value.size());
  }
  if (method == kLowRank) return put_lowrank(message, shape, py::getattr(contents, names().coded));
  if (method == kDct) return put_dct(message, numel, py::getattr(contents, names().coded));
  if (method > kGroup) return put_coded(message, method, numel, contents);
  with_index(py::getattr(contents, names().support), [&](const auto& index) {
    const int64_t k = index.size();
    if (method == kMerged) {
      const Members members = members_of(packet, k);
      const py::gil_scoped_release release;
      put_merged(message, numel, index.data(), k, members);
      return;
    }
    const auto value = checked<float>(py::getattr(contents, names().coded), "value");
    check_length(k, value.size());
    const float scale = method == kTernary ? py::getattr(contents, names().scale).cast<float>() : 0;
    const py::gil_scoped_release release;
    if (method == kSparse)
      put_sparse(message, numel, index.data(), value.data(), k);
    else
      put_ternary(message, numel, index.data(), value.data(), k, scale);
  });
}

namespace {

py::tuple shape_of(const Body& body) {
  py::tuple shape(body.ndim);
  for (int i = 0; i < body.ndim; ++i) shape[static_cast<size_t>(i)] = py::int_(body.dims[i]);
  return shape;
}

// Whether a body has pairs that lie beside those of other members.
bool has_narrow_pairs(const Body& body) { return body.method == kTernary && body.narrow(); }

}  // namespace

py::object read_packet(const Body& body, const Cursor& cursor, const py::function& build,
                       bool located) {
  const double scale = body.method == kTernary ? body.scale : 0;
  const auto head = [&](const auto&... rest) {  // positional: names take twice as long
    return build(kMethodNames[body.method], shape_of(body), kDtypeNames[body.dtype], rest...);
  };
  const py::object none = py::none();
  if (located && can_stay_closed(body))
    return head(none, none, scale, none, located_of(body, cursor));
  const py::object support = support_of(body, cursor);
  if (body.method == kMerged) {
    py::array_t<float> value(body.k);
    float* sums = value.mutable_data();
    Members members;
    {
      const py::gil_scoped_release release;
      read_members(body, cursor, sums, &members);
    }
    return head(support, value, scale, dict_of(members));
  }
  return head(support, coded_of(body, cursor), scale);
}

py::object read_group(const std::vector<Body>& bodies, const Cursor& cursor,
                      const py::function& build, bool located) {
  const auto joined = [&](const Body& body) { return !located && has_narrow_pairs(body); };
  int64_t k = 0;
  for (const Body& body : bodies) k += joined(body) ? body.k : 0;
  py::array_t<int32_t> index(k);
  py::array_t<float> value(k);
  int32_t* const index_out = index.mutable_data();
  float* const value_out = value.mutable_data();
  {
    const py::gil_scoped_release release;
    int64_t at = 0;
    for (const Body& body : bodies) {
      if (!joined(body) || body.k == 0) continue;
      read_index(body, cursor, index_out + at);
      read_ternary_values(body, value_out + at);
      at += body.k;
    }
  }
  py::list members;
  for (const Body& body : bodies) {
    if (joined(body))
      members.append(py::make_tuple(shape_of(body), kDtypeNames[body.dtype], body.k, body.scale));
    else
      members.append(read_packet(body, cursor, build, located));
  }
  return build("method"_a = "group", "members"_a = members, "support"_a = index, "coded"_a = value);
}

py::object merge_packets(const std::vector<py::object>& packets, const py::function& build) {
  const KernelFpEnv env;
  const std::vector<int64_t> shape = shape_of(packets[0]);
  const int dtype = dtype_of(packets[0]);
  Message head;
  const int64_t numel = put_head(&head, kMerged, dtype, shape);
  std::vector<Part> parts;
  std::vector<py::object> held;  // what the parts point into
  for (const py::object& packet : packets) {
    const py::object contents = packet.attr("_contents");
    const auto value = checked<float>(contents.attr("coded"), "value");
    const auto scale = contents.attr("scale").cast<float>();
    with_index(contents.attr("support"), [&](const auto& index) {
      check_length(index.size(), value.size());
      using Element = std::remove_cv_t<std::remove_pointer_t<decltype(index.data())>>;
      if (!(index.size() == 0 ? scale == 0 : scale > 0 && scale - scale == 0))
        throw PackError(
            "merge: scale must be positive and finite (0 where a packet is empty), got " +
            std::to_string(scale) + ".");
      parts.push_back(
          {index.data(), std::is_same_v<Element, int32_t>, value.data(), index.size(), scale});
      held.insert(held.end(), {index.owner(), value.owner()});
    });
  }
  std::vector<int64_t> index;
  std::vector<float> value;
  Members members;
  {
    const py::gil_scoped_release release;
    merge(parts, numel, &index, &value, &members);
  }
  py::object support = array_of(index);
  if (numel <= INT32_MAX) support = support.attr("astype")("int32");
  return build("method"_a = "merged", "dtype"_a = kDtypeNames[static_cast<size_t>(dtype)],
               "shape"_a = shape, "support"_a = support, "coded"_a = array_of(value),
               "merged"_a = dict_of(members));
}

py::list unmerge_packet(const py::handle& packet, const py::function& build) {
  const KernelFpEnv env;
  const py::object contents = packet.attr("_contents");
  return with_index(contents.attr("support"), [&](const auto& index) {
    using Element = std::remove_cv_t<std::remove_pointer_t<decltype(index.data())>>;
    const Members members = members_of(packet, index.size());
    std::vector<int64_t> size(members.scale.size());
    for (const int64_t place : members.place) ++size[static_cast<size_t>(place % members.parts())];
    std::vector<py::array_t<Element>> part_index;
    std::vector<py::array_t<float>> part_value;
    std::vector<Element*> to_index;
    std::vector<float*> to_value;
    for (const int64_t k : size) {
      to_index.push_back(part_index.emplace_back(k).mutable_data());
      to_value.push_back(part_value.emplace_back(k).mutable_data());
    }
    {
      const py::gil_scoped_release release;
      unmerge(members, index.data(), to_index, to_value);
    }
    py::list packets;
    for (size_t j = 0; j < size.size(); ++j)
      packets.append(build("method"_a = "ternary",
                           "dtype"_a = kDtypeNames[static_cast<size_t>(dtype_of(packet))],
                           "shape"_a = packet.attr("shape"), "support"_a = part_index[j],
                           "coded"_a = part_value[j], "scale"_a = members.scale[j]));
    return packets;
  });
}

}  // namespace gcext::wire
