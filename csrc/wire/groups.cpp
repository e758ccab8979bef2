#include "groups.h"

#include <optional>

#include "coded.h"
#include "lender.h"
#include "names.h"
#include "packets.h"

namespace gcext::wire {
namespace {

using namespace py::literals;

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

// Whether a body has pairs that lie beside those of other members.
bool has_narrow_pairs(const Body& body) {
  return (body.method == kTernary || body.method == kSparse) && body.narrow();
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

}  // namespace gcext::wire
