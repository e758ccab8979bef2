#include "transforms.h"

#include "fields.h"

namespace gcext::wire {

using namespace py::literals;

void put_dct(Message* message, const std::vector<int64_t>& shape, const py::handle& code) {
  const auto value = checked<float>(code.attr("value"), "value");
  const Matrix view = dct_view(shape.data(), static_cast<int>(shape.size()));
  const DctFields fields{code.attr("block").cast<int64_t>(), code.attr("ternary").cast<bool>(),
                         code.attr("by_block").cast<bool>()};
  const auto scale = code.attr("scale").cast<float>();
  with_index(code.attr("index"), [&](const auto& index) {
    check_count("dct", "values", value.size(), index.size());
    const py::gil_scoped_release release;
    put_dct(message, view, fields, index.data(), value.data(), index.size(), scale);
  });
}

void put_lowrank(Message* message, const std::vector<int64_t>& shape, const py::handle& code) {
  const auto left = checked<float>(code.attr("left"), "left");
  const auto right = checked<float>(code.attr("right"), "right");
  put_lowrank(message, shape, code.attr("rank").cast<int64_t>(),
              {left.data(), left.size(), right.data(), right.size()});
}

py::dict dct_fields(const Body& body, const py::object& index, const py::object& value) {
  const Matrix view = dct_view(body);
  return py::dict("rows"_a = view.rows, "cols"_a = view.cols, "block"_a = body.dct.block,
                  "ternary"_a = body.dct.ternary, "index"_a = index, "value"_a = value,
                  "scale"_a = body.scale, "by_block"_a = body.dct.by_block);
}

py::dict lowrank_fields(const Body& body) {
  const Matrix view = lowrank_view(body);
  const int64_t rank = body.lowrank.rank;
  return py::dict("rows"_a = view.rows, "cols"_a = view.cols, "rank"_a = rank,
                  "left"_a = array_of<float>(body.lowrank.left, view.rows * rank),
                  "right"_a = array_of<float>(body.lowrank.right, view.cols * rank));
}

}  // namespace gcext::wire
