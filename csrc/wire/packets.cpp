#include "packets.h"

#include <pybind11/stl.h>

#include <optional>

#include "../bits.h"
#include "../common/fpenv.h"
#include "coded.h"
#include "lender.h"
#include "names.h"
#include "sketch_arrays.h"
#include "sum.h"
#include "transforms.h"
#include "value_codes.h"

namespace gcext::wire {
namespace {

using namespace py::literals;

// Of "torch.float32" or "float32".
int dtype_named(const py::handle& dtype) {
  return code_of(kDtypeNames, dtype_name(dtype), "dtype");
}

int dtype_of(const py::handle& packet) { return dtype_named(py::getattr(packet, names().dtype)); }

std::vector<int64_t> shape_of(const py::handle& packet) {
  return py::getattr(packet, names().shape).cast<std::vector<int64_t>>();
}

// The method of a name. Throws PackError for one that the format does not have.
Method method_named(const py::handle& name) {
  return static_cast<Method>(code_of(kMethodNames, name.cast<std::string>(), "method"));
}

Method method_of(const py::handle& packet) {
  return method_named(py::getattr(packet, names().method));
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

void put_packet(Message* message, const py::handle& packet);

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

// The body of a packet that is no group.
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

// Writes packets whose elements lie one after the other in a Joined; many elements side by side.
class JoinedWriter {
 public:
  JoinedWriter(Message* message, Array<int32_t> index, Array<float> value)
      : message_(message),
        index_(std::move(index)),
        value_(std::move(value)),
        at_once_(part_count(index_.size(), kNumbersOfPart) == 1) {
    check_length(index_.size(), value_.size());
  }

  // The next k of the elements, as a packet of this head.
  void add(const py::tuple& head) {
    Part part{method_named(head[0]), 0, at_, head[3].cast<int64_t>(), head[4].cast<float>(), {}};
    Message* const to = at_once_ ? message_ : &part.message;
    part.numel =
        put_head(to, part.method, dtype_named(head[2]), head[1].cast<std::vector<int64_t>>());
    if (part.k < 0 || part.k > index_.size() - at_)
      throw PackError("pack: a head must name the next of " + std::to_string(index_.size()) +
                      " elements, got " + std::to_string(part.k) + " from " + std::to_string(at_) +
                      " on.");
    if (part.method != kSparse && part.method != kTernary)
      throw PackError("pack: a head must be of a sparse or ternary packet.");
    at_ += part.k;
    if (at_once_) {
      const py::gil_scoped_release release;
      return put(part, to);
    }
    parts_.push_back(std::move(part));
  }

  // Ends the message where the last one that was added does.
  void flush() {
    const py::gil_scoped_release release;
    run_items(
        static_cast<int64_t>(parts_.size()),
        [&](int64_t i) { return parts_[static_cast<size_t>(i)].k; },
        [&](int64_t i) {
          Part& part = parts_[static_cast<size_t>(i)];
          put(part, &part.message);
        });
    for (Part& part : parts_) message_->append(std::move(part.message));
    parts_.clear();
  }

 private:
  struct Part {
    Method method;
    int64_t numel, from, k;
    float scale;
    Message message;
  };

  Message* const message_;
  const Array<int32_t> index_;
  const Array<float> value_;
  const bool at_once_;
  int64_t at_ = 0;
  std::vector<Part> parts_;

  void put(const Part& part, Message* to) const {
    const int32_t* const index = index_.data() + part.from;
    const float* const value = value_.data() + part.from;
    if (part.method == kSparse)
      put_sparse(to, part.numel, index, value, part.k);
    else
      put_ternary(to, part.numel, index, value, part.k, part.scale);
  }
};

bool is_composed(const py::handle& packet) {
  const Method method = method_of(packet);
  return method == kMerged || method == kSum;
}

}  // namespace

bool put_body(Message* message, const py::handle& packet) {
  if (method_of(packet) != kGroup) {
    put_packet(message, packet);
    return is_composed(packet);
  }
  const py::object joined = py::getattr(packet, names().joined, py::none());
  std::optional<JoinedWriter> pairs;
  py::object members;
  if (joined.is_none()) {
    members = py::getattr(packet, names().members);
  } else {
    members = py::getattr(joined, names().heads);
    pairs.emplace(message, checked<int32_t>(py::getattr(joined, names().index), "index"),
                  checked<float>(py::getattr(joined, names().value), "value"));
  }
  const auto count = py::len(members);
  if (count == 0) throw PackError("pack: a group must have at least one member, got none.");
  message->byte(kGroup);
  message->varint(count);
  bool composed = false;
  for (const py::handle member : members) {
    if (pairs.has_value() && PyTuple_Check(member.ptr())) {
      pairs->add(py::reinterpret_borrow<py::tuple>(member));
    } else {
      if (pairs.has_value()) pairs->flush();
      put_packet(message, member);
      composed = composed || is_composed(member);
    }
  }
  if (pairs.has_value()) pairs->flush();
  return composed;
}

namespace {

py::tuple shape_of(const Body& body) {
  py::tuple shape(body.ndim);
  for (int i = 0; i < body.ndim; ++i) shape[static_cast<size_t>(i)] = py::int_(body.dims[i]);
  return shape;
}

// Whether a body has pairs that lie beside those of other members.
bool has_narrow_pairs(const Body& body) {
  return (body.method == kTernary || body.method == kSparse) && body.narrow();
}

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

py::object read_group(const std::vector<Body>& bodies, const Cursor& cursor,
                      const py::function& build, bool located) {
  const auto joined = [&](const Body& body) { return !located && has_narrow_pairs(body); };
  int64_t k = 0;
  for (const Body& body : bodies) k += joined(body) ? body.k : 0;
  auto index = new_array<int32_t>(k);
  auto value = new_array<float>(k);
  int32_t* const index_out = index.mutable_data();
  float* const value_out = value.mutable_data();
  {
    const py::gil_scoped_release release;
    std::vector<std::pair<const Body*, int64_t>> pairs;  // and where they go
    int64_t end = 0;
    for (const Body& body : bodies) {
      if (!joined(body) || body.k == 0) continue;
      pairs.emplace_back(&body, end);
      end += body.k;
    }
    run_items(
        static_cast<int64_t>(pairs.size()),
        [&](int64_t i) { return pairs[static_cast<size_t>(i)].first->k; },
        [&](int64_t i) {
          const Body& body = *pairs[static_cast<size_t>(i)].first;
          const int64_t at = pairs[static_cast<size_t>(i)].second;
          read_index(body, cursor, index_out + at);
          if (body.method == kTernary)
            read_ternary_values(body, value_out + at);
          else
            std::memcpy(value_out + at, body.values, sizeof(float) * static_cast<size_t>(body.k));
        });
  }
  py::list members;
  for (const Body& body : bodies) {
    if (joined(body))
      members.append(py::make_tuple(kMethodNames[body.method], shape_of(body),
                                    kDtypeNames[body.dtype], body.k, body.scale));
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
