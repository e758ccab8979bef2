// sketch: from Python's arrays and back; see packets.h.
#pragma once

#include "arrays.h"
#include "sketch.h"

namespace gcext::wire {

inline void put_sketch(Message* message, const py::handle& code) {
  const auto table = checked<float>(code.attr("table"), "table");
  put_sketch(message, {code.attr("rows").cast<int64_t>(), code.attr("cols").cast<int64_t>(),
                       code.attr("seed").cast<uint64_t>(), table.data(), table.size()});
}

inline py::dict sketch_of(const Body& body) {
  const SketchFields& sketch = body.sketch;
  return py::dict(py::arg("rows") = sketch.rows, py::arg("cols") = sketch.cols,
                  py::arg("seed") = sketch.seed,
                  py::arg("table") = array_of<float>(sketch.cell, sketch.rows * sketch.cols));
}

}  // namespace gcext::wire
