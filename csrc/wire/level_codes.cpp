#include "level_codes.h"

#include "levels.h"
#include "levels2.h"
#include "powers.h"

namespace gcext::wire {
namespace {

using namespace py::literals;

template <class Index>
py::dict levels_of(const Body& body, const Cursor& cursor) {
  const LevelFields& fields = body.levels;
  auto at = new_array<Index>(fields.places);
  auto level = new_array<int16_t>(fields.places);
  Index* at_out = at.mutable_data();
  int16_t* level_out = level.mutable_data();
  {
    const py::gil_scoped_release release;
    body.method == kLevels ? read_levels(body, cursor, at_out, level_out)
                           : read_levels2(body, cursor, at_out, level_out);
  }
  return py::dict("steps"_a = fields.steps, "bucket"_a = fields.bucket,
                  "norms"_a = array_of<float>(fields.norm, fields.norms), "at"_a = at,
                  "level"_a = level);
}

}  // namespace

void put_level_code(Message* message, Method method, int64_t k, const py::handle& code) {
  const auto norm = checked<float>(code.attr("norms"), "norms");
  const auto level = checked<int16_t>(code.attr("level"), "level");
  const LevelArrays arrays{code.attr("steps").cast<int64_t>(),
                           code.attr("bucket").cast<int64_t>(),
                           norm.data(),
                           norm.size(),
                           level.data(),
                           level.size()};
  with_index(code.attr("at"), [&](const auto& at) {
    const py::gil_scoped_release release;
    method == kLevels ? put_levels(message, k, arrays, at.data(), at.size())
                      : put_levels2(message, k, arrays, at.data(), at.size());
  });
}

void put_power_code(Message* message, int64_t k, const py::handle& code) {
  const auto power = checked<int16_t>(code.attr("power"), "power");
  const auto scale = code.attr("scale").cast<float>();
  const py::gil_scoped_release release;
  put_powers(message, k, scale, power.data(), power.size());
}

py::dict level_code_of(const Body& body, const Cursor& cursor) {
  return body.narrow() ? levels_of<int32_t>(body, cursor) : levels_of<int64_t>(body, cursor);
}

py::dict power_code_of(const Body& body, const Cursor& cursor) {
  auto power = new_array<int16_t>(power_count(body));
  int16_t* out = power.mutable_data();
  {
    const py::gil_scoped_release release;
    read_powers(body, cursor, out);
  }
  return py::dict("scale"_a = body.scale, "power"_a = power);
}

}  // namespace gcext::wire
