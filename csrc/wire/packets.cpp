#include "packets.h"

#include "../bits.h"
#include "../common/fpenv.h"
#include "coded.h"
#include "names.h"
#include "sketch_arrays.h"
#include "sum.h"
#include "transforms.h"
#include "value_codes.h"

namespace gcext::wire {

using namespace py::literals;

int dtype_named(const py::handle& dtype) {
  return code_of(kDtypeNames, dtype_name(dtype), "dtype");
}

Method method_named(const py::handle& name) {
  return static_cast<Method>(code_of(kMethodNames, name.cast<std::string>(), "method"));
}

Method method_of(const py::handle& packet) {
  return method_named(py::getattr(packet, names().method));
}

void check_length(int64_t k, py::ssize_t values) {
  if (k != values)
    throw PackError("pack: value must be as long as index, " + std::to_string(k) + ", got " +
                    std::to_string(values) + ".");
}

namespace {

int dtype_of(const py::handle& packet) { return dtype_named(py::getattr(packet, names().dtype)); }

std::vector<int64_t> shape_of(const py::handle& packet) {
  return py::getattr(packet, names().shape).cast<std::vector<int64_t>>();
}

// The contents of a packet on the host. Those of a group's member may not have been asked for yet.
py::object contents_of(const py::handle& packet) {
  py::object made = py::getattr(packet, names()._contents);
  return made.is_none() ? py::getattr(packet, names().contents) : made;
}

// A ternary packet whose streams, from the tile table to the signs, a device has encoded.
void put_encoded(Message* message, const py::handle& encoded) {
  const auto streams = checked<uint8_t>(encoded.attr("streams"), "streams");
  put_ternary_head(message, encoded.attr("k").cast<int64_t>(), encoded.attr("scale").cast<float>());
  if (streams.size() > 0) message->borrow(streams.data(), streams.size());
}

// The terms of a sum.
void put_sum(Message* message, const py::handle& contents) {
  const auto terms = contents.attr("coded").attr("terms").cast<py::sequence>();
  message->varint(terms.size());
  for (const py::handle term : terms) {
    if (!can_be_term(method_of(term)))
      throw PackError(std::string("pack: a term of a sum must not be a ") +
                      kMethodNames[method_of(term)] + " packet.");
    put_packet(message, term);
  }
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
  auto index = new_array<Index>(body.k);
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
  if (body.support == kAll) return py::none();
  if (body.support == kDrawn) return py::dict("seed"_a = body.seed, "k"_a = body.k);
  return indices_of(body, cursor);
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

void put_packet(Message* message, const py::handle& packet) {
  const Method method = method_of(packet);
  if (method == kGroup) throw PackError("pack: a group must not be a member of a group.");
  const std::vector<int64_t> shape = shape_of(packet);
  const int64_t numel = put_head(message, method, dtype_of(packet), shape);
  const py::object encoded = py::getattr(packet, names().encoded);
  if (method == kTernary && !encoded.is_none()) return put_encoded(message, encoded);
  const py::object contents = contents_of(packet);
  if (method == kDense) {
    const auto value = checked<float>(py::getattr(contents, names().coded), "value");
    const py::gil_scoped_release release;
    return put_dense(message, numel, value.data(), value.size());
  }
  if (method == kSum) return put_sum(message, contents);
  const py::object code = py::getattr(contents, names().coded);
  if (method == kSketch) return put_sketch(message, code);
  if (method == kLowRank) return put_lowrank(message, shape, code);
  if (method == kDct) return put_dct(message, shape, code);
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

py::tuple shape_of(const Body& body) {
  py::tuple shape(body.ndim);
  for (int i = 0; i < body.ndim; ++i) shape[static_cast<size_t>(i)] = py::int_(body.dims[i]);
  return shape;
}

py::object read_packet(const Body& body, const Cursor& cursor, const py::function& build,
                       bool located) {
  const double scale = body.method == kTernary ? body.scale : 0;
  const auto head = [&](const auto&... rest) {  // positional: names take twice as long
    return build(kMethodNames[body.method], shape_of(body), kDtypeNames[body.dtype], rest...);
  };
  const py::object none = py::none();
  if (located && can_stay_closed(body))
    return head(none, none, scale, none, located_of(body, cursor));
  if (body.method == kSum) {
    py::list terms;
    for_each_term(body, cursor, [&](const Body& term, const Cursor& at) {
      terms.append(read_packet(term, at, build, false));
    });
    return head(none, terms);
  }
  if (body.method == kLowRank) return head(none, lowrank_fields(body));
  if (body.method == kDct)
    return head(none, dct_fields(body, indices_of(body, cursor), coded_of(body, cursor)));
  const py::object support = support_of(body, cursor);
  if (body.method == kMerged) {
    auto value = new_array<float>(body.k);
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

py::object merge_packets(const std::vector<py::object>& packets, const py::function& build) {
  const KernelFpEnv env;
  const std::vector<int64_t> shape = shape_of(packets[0]);
  const int dtype = dtype_of(packets[0]);
  Message head;
  const int64_t numel = put_head(&head, kMerged, dtype, shape);
  std::vector<Part> parts;
  std::vector<py::object> held;  // what the parts point into
  for (const py::object& packet : packets) {
    const py::object contents = contents_of(packet);
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
  const py::object contents = contents_of(packet);
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
      to_index.push_back(part_index.emplace_back(new_array<Element>(k)).mutable_data());
      to_value.push_back(part_value.emplace_back(new_array<float>(k)).mutable_data());
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
