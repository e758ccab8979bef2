// The support and the value code of a packet as Python has them, and back; see gcext/_wire.pyi.
#pragma once

#include "arrays.h"
#include "frame.h"

namespace gcext::wire {

// Appends the support and the value code of a packet of `numel` elements. Throws PackError.
void put_coded(Message* message, Method method, int64_t numel, const py::handle& contents);

// The coded values of a body: float32, or the fields of a value code by name.
py::object coded_of(const Body& body, const Cursor& cursor);

}  // namespace gcext::wire
