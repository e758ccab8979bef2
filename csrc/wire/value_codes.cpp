#include "value_codes.h"

#include "../bits.h"
#include "coded.h"
#include "codes.h"
#include "level_codes.h"
#include "names.h"
#include "sketch_arrays.h"

namespace gcext::wire {
namespace {

using namespace py::literals;

// The support of a coded packet, and k.
int64_t put_support(Message* message, Method method, int64_t numel, const py::handle& support) {
  const auto allowed = [&](Support kind) {
    if (!support_allowed(method, kind))
      throw PackError(std::string("pack: a ") + kMethodNames[method] +
                      " packet does not come with a support of " +
                      (kind == kAll       ? "all elements."
                       : kind == kIndices ? "indices."
                                          : "random elements."));
  };
  if (support.is_none()) {
    allowed(kAll);
    put_support(message, kAll, numel, 0);
    return numel;
  }
  if (py::hasattr(support, "k")) {
    allowed(kDrawn);
    const auto k = support.attr("k").cast<int64_t>();
    if (k < 0 || k > numel)
      throw PackError("pack: k must be in [0, " + std::to_string(numel) + "], got " +
                      std::to_string(k) + ". Draw fewer elements.");
    put_support(message, kDrawn, k, support.attr("seed").cast<uint64_t>());
    return k;
  }
  allowed(kIndices);
  return with_index(support, [&](const auto& index) {
    const int64_t k = index.size();
    put_support(message, kIndices, k, 0);
    const py::gil_scoped_release release;
    message->own(pack_section(index.data(), k, numel));
    return k;
  });
}

}  // namespace

void put_coded(Message* message, Method method, int64_t numel, const py::handle& contents) {
  const int64_t k = put_support(message, method, numel, contents.attr("support"));
  const py::object code = contents.attr("coded");
  if (method == kRandom) {
    const auto value = checked<float>(code, "value");
    put_random(message, k, value.data(), value.size());
  } else if (method == kSign) {
    const auto bits = checked<uint8_t>(code.attr("bits"), "bits");
    put_sign(message, k, code.attr("scale").cast<float>(), bits.data(), bits.size());
  } else if (method == kLevels || method == kLevels2) {
    put_level_code(message, method, k, code);
  } else if (method == kPowers) {
    put_power_code(message, k, code);
  } else if (method == kCodes) {
    const auto scale = checked<float>(code.attr("scales"), "scales");
    const auto bits = checked<uint8_t>(code.attr("bits"), "bits");
    put_codes(message, k,
              {code_of(kTableNames, code.attr("table").cast<std::string>(), "table"),
               code.attr("width").cast<int64_t>(), code.attr("bucket").cast<int64_t>(),
               scale.data(), scale.size(), bits.data(), bits.size()});
  } else {
    const auto bits = checked<uint8_t>(code.attr("message"), "message");
    const auto scale = checked<float>(code.attr("scale"), "scale");
    const py::object seed = code.attr("seed");
    const bool rotated = !seed.is_none();
    put_polar(message, k,
              {code.attr("block").cast<int64_t>(), code.attr("kept").cast<int64_t>(),
               code.attr("soft").cast<bool>(), rotated, rotated ? seed.cast<uint64_t>() : 0,
               scale.data(), scale.size(), bits.data(), bits.size()});
  }
}

py::object coded_of(const Body& body, const Cursor& cursor) {
  switch (body.method) {
    case kDct:  // its coefficients
      if (!body.dct.ternary) return array_of<float>(body.values, body.k);
      [[fallthrough]];
    case kTernary: {
      auto value = new_array<float>(body.k);
      float* out = value.mutable_data();
      if (body.k > 0) {
        const py::gil_scoped_release release;
        read_ternary_values(body, out);
      }
      return value;
    }
    case kSign:
      return py::dict("scale"_a = body.scale,
                      "bits"_a = array_of<uint8_t>(body.signs, plane_bytes(body.k, 1)));
    case kLevels:
    case kLevels2:
      return level_code_of(body, cursor);
    case kPowers:
      return power_code_of(body, cursor);
    case kPolar: {
      const PolarFields& polar = body.polar;
      py::object seed = py::none();
      if (polar.rotated) seed = py::int_(polar.seed);
      return py::dict("message"_a = array_of<uint8_t>(polar.message, polar.bytes),
                      "block"_a = polar.block, "kept"_a = polar.kept, "soft"_a = polar.soft,
                      "scale"_a = array_of<float>(polar.scale, polar.scales), "seed"_a = seed);
    }
    case kCodes: {
      const CodeFields& codes = body.codes;
      return py::dict("table"_a = kTableNames[static_cast<size_t>(codes.table)],
                      "width"_a = codes.width, "bucket"_a = codes.bucket,
                      "scales"_a = array_of<float>(codes.scale, codes.scales),
                      "bits"_a = array_of<uint8_t>(codes.bits, codes.bytes));
    }
    case kSketch:
      return sketch_of(body);
    default:  // dense, sparse, random
      return array_of<float>(body.values, body.k);
  }
}

}  // namespace gcext::wire
