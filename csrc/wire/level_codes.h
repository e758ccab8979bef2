// The value codes levels, levels2 and powers as Python has them (gcext._packet.codes, powers), and
// back.
#pragma once

#include "arrays.h"
#include "frame.h"

namespace gcext::wire {

// method: kLevels or kLevels2.
void put_level_code(Message* message, Method method, int64_t k, const py::handle& code);
void put_power_code(Message* message, int64_t k, const py::handle& code);

// The fields by name.
py::dict level_code_of(const Body& body, const Cursor& cursor);
py::dict power_code_of(const Body& body, const Cursor& cursor);

}  // namespace gcext::wire
