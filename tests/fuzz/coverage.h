// Which edges of the code under test a run has seen. Built with -fsanitize-coverage=trace-pc, as
// g++ and clang have it; else nothing is ever new.
#pragma once

namespace gcext::fuzz {

// Whether an edge was seen since the last call that never was before; starts again.
bool saw_new_edge();

}  // namespace gcext::fuzz
