// groups: the bodies of whole messages, which are one packet's or a group's. The members of a group
// are written and read side by side.
#pragma once

#include "arrays.h"
#include "frame.h"
#include "message.h"

namespace gcext::wire {

// Appends the body of a packet. Throws PackError. Returns whether it is or holds a merged packet or
// a sum: their rules are many, and the decoder has them.
bool put_body(Message* message, const py::handle& packet);

// build(method="group", members=..., support=..., coded=...) of the bodies of a group's members. A
// member is what read_packet gives; of a sparse or ternary packet it is (method, shape, dtype, k,
// scale), and its pairs are the next k of the arrays `support` and `coded`, which serve them all.
py::object read_group(const std::vector<Body>& bodies, const Cursor& cursor,
                      const py::function& build, bool located);

}  // namespace gcext::wire
