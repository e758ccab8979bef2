// The value codes "dct" and "lowrank" of Python packets, gcext/_packet/transforms.py.
#pragma once

#include "arrays.h"
#include "dct.h"

namespace gcext::wire {

void put_dct(Message* message, const std::vector<int64_t>& shape, const py::handle& code);
void put_lowrank(Message* message, const std::vector<int64_t>& shape, const py::handle& code);

// The fields of the value code of a body, by name.
py::dict dct_fields(const Body& body, const py::object& index, const py::object& value);
py::dict lowrank_fields(const Body& body);

}  // namespace gcext::wire
