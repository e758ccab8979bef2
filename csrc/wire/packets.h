// Python packets, read by attribute, and the parts of a decoded one, given by name; see
// gcext/_wire.pyi.
#pragma once

#include "arrays.h"
#include "frame.h"
#include "merged.h"

namespace gcext::wire {

// Appends the body of a packet. Throws PackError. Returns whether it is or holds a merged packet or
// a sum: their rules are many, and the decoder has them.
bool put_body(Message* message, const py::handle& packet);

// build(method=..., shape=..., ...) of a body that is no group, validated before. `located`: of a
// body that a device can decode, where its streams are, in place of its arrays.
py::object read_packet(const Body& body, const Cursor& cursor, const py::function& build,
                       bool located);

// build(method="group", members=..., support=..., coded=...) of the bodies of a group's members. A
// member is what read_packet gives; of a sparse or ternary packet it is (method, shape, dtype, k,
// scale), and its pairs are the next k of the arrays `support` and `coded`, which serve them all.
py::object read_group(const std::vector<Body>& bodies, const Cursor& cursor,
                      const py::function& build, bool located);

// build(...) of ternary packets of one shape and dtype, merged.
py::object merge_packets(const std::vector<py::object>& packets, const py::function& build);

// build(...) of each of the packets that a merged one was made of.
py::list unmerge_packet(const py::handle& packet, const py::function& build);

}  // namespace gcext::wire
