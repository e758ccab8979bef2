// Python packets, read by attribute, and the parts of a decoded one, given by name; see
// gcext/_wire.pyi.
#pragma once

#include "arrays.h"
#include "frame.h"
#include "merged.h"

namespace gcext::wire {

// The code of a dtype, "torch.float32" or "float32". Throws PackError for one that the format does
// not have, as do these.
int dtype_named(const py::handle& dtype);
Method method_named(const py::handle& name);
Method method_of(const py::handle& packet);

// Throws PackError unless a packet of k elements has as many values.
void check_length(int64_t k, py::ssize_t values);

// Appends the body of a packet that is no group. Throws PackError.
void put_packet(Message* message, const py::handle& packet);

py::tuple shape_of(const Body& body);

// build(method=..., shape=..., ...) of a body that is no group, validated before. `located`: of a
// body that a device can decode, where its streams are, in place of its arrays.
py::object read_packet(const Body& body, const Cursor& cursor, const py::function& build,
                       bool located);

// build(...) of ternary packets of one shape and dtype, merged.
py::object merge_packets(const std::vector<py::object>& packets, const py::function& build);

// build(...) of each of the packets that a merged one was made of.
py::list unmerge_packet(const py::handle& packet, const py::function& build);

}  // namespace gcext::wire
