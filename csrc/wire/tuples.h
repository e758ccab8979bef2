// Bodies as Python tuples, gcext/_wire.pyi, and back.
#pragma once

#include "arrays.h"
#include "frame.h"
#include "merged.h"

namespace gcext::wire {

// Appends one body that is no group. Throws PackError.
void put_body(Message* message, const py::tuple& body);

// The tuple of a body that is no group, checked before. `closed`: of a body that can stay so, where
// its streams are, in place of its arrays.
py::tuple read_body(const Body& body, const Cursor& cursor, bool closed);

// The members of a merged body of k elements.
Members members_of(const py::tuple& body, int64_t k);

// Raises PackError unless an array is as long as the index.
void check_length(int64_t k, py::ssize_t values, const char* name);

}  // namespace gcext::wire
