// The module gcext._wire: bytes and NumPy arrays in, bytes and NumPy arrays out; torch is unknown
// here. Typed in gcext/_wire.pyi, wrapped by gcext/wire.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "../bits.h"
#include "../fpenv.h"
#include "../isa.h"
#include "frame.h"
#include "merged.h"

namespace py = pybind11;

namespace gcext::wire {
namespace {

template <class T>
py::array_t<T> checked(const py::handle& object, const char* name) {
  if (!py::isinstance<py::array_t<T>>(object))
    throw PackError(std::string("pack: ") + name + " must be a NumPy array of " +
                    py::str(py::dtype::of<T>()).cast<std::string>() + ", got " +
                    py::repr(py::type::of(object)).cast<std::string>() + ". Convert it first.");
  auto array = py::reinterpret_borrow<py::array_t<T>>(object);
  if (array.ndim() != 1 ||
      (array.size() > 1 && array.strides(0) != static_cast<py::ssize_t>(sizeof(T))))
    throw PackError(std::string("pack: ") + name +
                    " must be one-dimensional and contiguous. Copy it first.");
  return array;
}

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <class T>
std::vector<T> vector_of(const py::handle& object, const char* name) {
  const py::array_t<T> array = checked<T>(object, name);
  return std::vector<T>(array.data(), array.data() + array.size());
}

// Calls visit(array) with the index array as int32 or int64.
template <class Visit>
auto with_index(const py::handle& object, const Visit& visit) {
  if (py::isinstance<py::array_t<int32_t>>(object)) return visit(checked<int32_t>(object, "index"));
  return visit(checked<int64_t>(object, "index"));
}

Members members_of(const py::tuple& body, int64_t k) {
  Members members;
  members.scale = vector_of<float>(body[5], "scales");
  members.place = vector_of<int64_t>(body[6], "place");
  members.negative = vector_of<uint8_t>(body[7], "negative");
  bool fits = members.scale.size() >= 2 && members.negative.size() == members.place.size();
  int64_t previous = -1, parts = members.parts();
  for (const int64_t place : members.place) {
    fits = fits && place > previous && place / parts < k;
    previous = place;
  }
  if (!fits)
    throw PackError(
        "pack: a merged body's scales, places and signs do not fit together. Use merge.");
  return members;
}

void check_length(int64_t k, py::ssize_t values, const char* name) {
  if (k != values)
    throw PackError(std::string("pack: ") + name + " must be as long as index, " +
                    std::to_string(k) + ", got " + std::to_string(values) + ".");
}

// One body that is no group.
void put_body(Message* message, const py::tuple& body) {
  const int method = body[0].cast<int>();
  if (method < kDense || method > kMerged)
    throw PackError("pack: method must be a code of one packet, in [1, 4], got " +
                    std::to_string(method) + ".");
  const int64_t numel = put_head(message, static_cast<Method>(method), body[1].cast<int>(),
                                 body[2].cast<std::vector<int64_t>>());
  if (method == kDense) {
    const auto value = checked<float>(body[3], "value");
    const py::gil_scoped_release release;
    put_dense(message, numel, value.data(), value.size());
    return;
  }
  with_index(body[3], [&](const auto& index) {
    const int64_t k = index.size();
    if (method == kMerged) {
      const Members members = members_of(body, k);
      const py::gil_scoped_release release;
      put_merged(message, numel, index.data(), k, members);
      return;
    }
    const auto value = checked<float>(body[4], "value");
    check_length(k, value.size(), "value");
    const float scale = method == kTernary ? body[5].cast<float>() : 0;
    const py::gil_scoped_release release;
    if (method == kSparse)
      put_sparse(message, numel, index.data(), value.data(), k);
    else
      put_ternary(message, numel, index.data(), value.data(), k, scale);
  });
}

uint64_t digest_of(const py::function& digest, const uint8_t* first, int64_t bytes) {
  return digest(py::memoryview::from_memory(first, bytes)).cast<uint64_t>();
}

py::bytes pack(const py::tuple& body, const py::function& digest) {
  const KernelFpEnv env;
  Message message;
  const int method = body[0].cast<int>();
  if (method == kGroup) {
    const auto members = body[1].cast<py::sequence>();
    if (members.size() == 0)
      throw PackError("pack: a group must have at least one member, got none.");
    message.byte(kGroup);
    message.varint(members.size());
    for (const py::handle member : members)
      put_body(&message, py::reinterpret_borrow<py::tuple>(member));
  } else {
    put_body(&message, body);
  }
  const int64_t hashed = kHeadBytes + message.bytes();
  auto packet =
      py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, hashed + kChecksumBytes));
  if (!packet) throw py::error_already_set();
  auto* out = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(packet.ptr()));
  {
    const py::gil_scoped_release release;
    std::memcpy(out, kMagic, 4);
    out[4] = kVersion;
    message.write(out + kHeadBytes);
  }
  const uint64_t sum = digest_of(digest, out, hashed);
  std::memcpy(out + hashed, &sum, 8);
  if (method == kMerged) {  // the rules are many: the reader is their one judge
    try {
      check_message(open_frame(out, hashed + kChecksumBytes), nullptr);
    } catch (const DecodeError& error) {
      throw PackError(std::string("pack: a merged body must be canonical. Use merge. ") +
                      error.what());
    }
  }
  return packet;
}

template <class Index>
py::tuple read_body_as(const Body& body, const Cursor& cursor, const py::tuple& shape) {
  py::array_t<Index> index(body.k);
  py::array_t<float> value(body.k);
  Index* index_out = index.mutable_data();
  float* value_out = value.mutable_data();
  Members members;
  {
    const py::gil_scoped_release release;
    read_index(body, cursor, index_out);
    if (body.method == kTernary && body.k > 0) read_ternary_values(body, value_out);
    if (body.method == kSparse && body.k > 0)
      std::memcpy(value_out, body.values, 4 * static_cast<size_t>(body.k));
    if (body.method == kMerged) read_members(body, cursor, value_out, &members);
  }
  if (body.method == kMerged)
    return py::make_tuple(int{body.method}, int{body.dtype}, shape, index, value,
                          array_of(members.scale), array_of(members.place),
                          array_of(members.negative));
  if (body.method == kTernary)
    return py::make_tuple(int{body.method}, int{body.dtype}, shape, index, value, body.scale);
  return py::make_tuple(int{body.method}, int{body.dtype}, shape, index, value);
}

py::tuple read_body(const Body& body, const Cursor& cursor) {
  py::tuple shape(body.ndim);
  for (int i = 0; i < body.ndim; ++i) shape[static_cast<size_t>(i)] = py::int_(body.dims[i]);
  if (body.method == kDense) {
    py::array_t<float> value(body.k);
    float* out = value.mutable_data();
    const py::gil_scoped_release release;
    if (body.k > 0) std::memcpy(out, body.values, 4 * static_cast<size_t>(body.k));
    const py::gil_scoped_acquire acquire;
    return py::make_tuple(int{body.method}, int{body.dtype}, shape, value);
  }
  return body.narrow() ? read_body_as<int32_t>(body, cursor, shape)
                       : read_body_as<int64_t>(body, cursor, shape);
}

// Any contiguous buffer, held while it is read.
class Bytes {
 public:
  explicit Bytes(const py::buffer& buffer) {
    if (PyObject_GetBuffer(buffer.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~Bytes() { PyBuffer_Release(&view_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
  int64_t size() const { return view_.len; }

 private:
  Py_buffer view_;
};

py::tuple unpack(const py::buffer& buffer, const py::function& digest, const py::object& expect) {
  const KernelFpEnv env;  // a scale may be denormal, on its way to a double too
  const Bytes view(buffer);
  const uint8_t* message = view.data();
  const int64_t bytes = view.size();

  Expectation expectation;
  if (!expect.is_none()) {
    const auto pair = expect.cast<py::tuple>();
    expectation.group = pair[0].cast<bool>();
    expectation.shapes = pair[1].cast<std::vector<std::vector<int64_t>>>();
  }
  Cursor cursor = open_frame(message, bytes);
  const int64_t hashed = bytes - kChecksumBytes;
  uint64_t sum;
  std::memcpy(&sum, message + hashed, 8);
  if (digest_of(digest, message, hashed) != sum)
    cursor.fail("checksum", "checksum", message + hashed,
                "does not match the bytes. Fetch the message again.");
  {
    const py::gil_scoped_release release;
    check_message(cursor, expect.is_none() ? nullptr : &expectation);
  }
  const Body body = take_body(&cursor, false);
  if (body.method != kGroup) return read_body(body, cursor);
  py::list members;
  for (int64_t i = 0; i < body.members; ++i) {
    const Body member = take_body(&cursor, true);
    members.append(read_body(member, cursor));
  }
  return py::make_tuple(int{kGroup}, members);
}

py::tuple merge_parts(int dtype, const std::vector<int64_t>& shape,
                      const std::vector<py::tuple>& bodies) {
  const KernelFpEnv env;
  Message head;
  const int64_t numel = put_head(&head, kMerged, dtype, shape);
  std::vector<Part> parts;
  for (const py::tuple& body : bodies) {
    const auto value = checked<float>(body[4], "value");
    with_index(body[3], [&](const auto& index) {
      check_length(index.size(), value.size(), "value");
      using Element = std::remove_cv_t<std::remove_pointer_t<decltype(index.data())>>;
      const float scale = body[5].cast<float>();
      if (!(index.size() == 0 ? scale == 0 : scale > 0 && scale - scale == 0))
        throw PackError(
            "merge: scale must be positive and finite (0 where a packet is empty), got " +
            std::to_string(scale) + ".");
      parts.push_back(
          {index.data(), std::is_same_v<Element, int32_t>, value.data(), index.size(), scale});
    });
  }
  std::vector<int64_t> index;
  std::vector<float> value;
  Members members;
  {
    const py::gil_scoped_release release;
    merge(parts, numel, &index, &value, &members);
  }
  py::object union_index = array_of(index);
  if (numel <= INT32_MAX) union_index = union_index.attr("astype")("int32");
  return py::make_tuple(int{kMerged}, dtype, shape, union_index, array_of(value),
                        array_of(members.scale), array_of(members.place),
                        array_of(members.negative));
}

py::list unmerge_parts(const py::tuple& body) {
  const KernelFpEnv env;
  return with_index(body[3], [&](const auto& index) {
    using Element = std::remove_cv_t<std::remove_pointer_t<decltype(index.data())>>;
    const Members members = members_of(body, index.size());
    std::vector<int64_t> size(members.scale.size());
    for (const int64_t place : members.place) ++size[static_cast<size_t>(place % members.parts())];
    py::list parts;
    std::vector<Element*> to_index;
    std::vector<float*> to_value;
    for (size_t j = 0; j < size.size(); ++j) {
      py::array_t<Element> part_index(size[j]);
      py::array_t<float> part_value(size[j]);
      to_index.push_back(part_index.mutable_data());
      to_value.push_back(part_value.mutable_data());
      parts.append(py::make_tuple(part_index, part_value, members.scale[j]));
    }
    const py::gil_scoped_release release;
    unmerge(members, index.data(), to_index, to_value);
    return parts;
  });
}

py::bytes bits_pack(const py::object& value, int b) {
  const auto array = checked<uint32_t>(value, "value");
  if (b < 0 || b > 32)
    throw PackError("bits_pack: b must be in [0, 32], got " + std::to_string(b) + ".");
  std::string out(static_cast<size_t>(plane_bytes(array.size(), b)), '\0');
  bits().pack(array.data(), array.size(), b, reinterpret_cast<uint8_t*>(out.data()));
  return py::bytes(out);
}

py::array_t<uint32_t> bits_unpack(const py::bytes& plane, int64_t n, int b) {
  std::string in = plane.cast<std::string>();
  if (b < 0 || b > 32 || n < 0 || plane_bytes(n, b) > static_cast<int64_t>(in.size()))
    throw PackError("bits_unpack: the plane must hold n values of b <= 32 bits.");
  in.append(kBitsSlack, '\0');
  py::array_t<uint32_t> out(n);
  bits().unpack(reinterpret_cast<const uint8_t*>(in.data()), n, b, out.mutable_data());
  return out;
}

// scale: a float, or a float32 array with one for every `run` values.
py::array_t<float> signs_unpack(const py::object& plane, int64_t n, const py::object& scale,
                                int64_t run) {
  const KernelFpEnv env;  // a scale may be denormal
  const auto in = checked<uint8_t>(plane, "bits");
  const bool one = py::isinstance<py::float_>(scale);
  const std::vector<float> scales =
      one ? std::vector<float>{scale.cast<float>()} : vector_of<float>(scale, "scale");
  if (one) run = n;
  if (n < 0 || in.size() != plane_bytes(n, 1) || run < 0 || (!one && run % 8 != 0) ||
      (n > 0 && (run == 0 || (n - 1) / run >= static_cast<int64_t>(scales.size()))))
    throw PackError("signs_unpack: bits must be one for each of " + std::to_string(n) +
                    " values, and a scale for each run.");
  py::array_t<float> out(n);
  float* to = out.mutable_data();
  const py::gil_scoped_release release;
  for (int64_t at = 0; at < n; at += run)
    bits().unpack_signs(in.data() + at / 8, std::min(run, n - at),
                        scales[static_cast<size_t>(at / run)], to + at);
  return out;
}

py::tuple rice_pack(const py::object& index, int64_t limit) {
  return with_index(index, [&](const auto& array) {
    const PackedSection packed = pack_section(array.data(), array.size(), limit);
    const auto text = [](const std::vector<uint8_t>& piece) {
      return py::bytes(reinterpret_cast<const char*>(piece.data()), piece.size());
    };
    return py::make_tuple(text(packed.table), text(packed.remainders), text(packed.unary));
  });
}

}  // namespace
}  // namespace gcext::wire

PYBIND11_MODULE(_wire, m) {
  using namespace gcext::wire;
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const DecodeError& error) {
      const py::object type = py::module_::import("gcext.errors").attr("DecodeError");
      PyErr_SetObject(type.ptr(), type(error.code, error.field, error.offset, error.what()).ptr());
    } catch (const PackError& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });
  m.attr("TILE") = gcext::kTile;
  m.attr("NO_DIM") = kNoDim;
  m.def("isa", [] { return gcext::isa_name(gcext::isa()); });
  m.def("pack", pack, py::arg("body"), py::arg("digest"));
  m.def("unpack", unpack, py::arg("message"), py::arg("digest"), py::arg("expect") = py::none());
  m.def("merge", merge_parts, py::arg("dtype"), py::arg("shape"), py::arg("bodies"));
  m.def("unmerge", unmerge_parts, py::arg("body"));
  m.def("bits_pack", bits_pack, py::arg("value"), py::arg("b"));
  m.def("bits_unpack", bits_unpack, py::arg("plane"), py::arg("n"), py::arg("b"));
  m.def("signs_unpack", signs_unpack, py::arg("bits"), py::arg("n"), py::arg("scale"),
        py::arg("run") = 0);
  m.def("rice_pack", rice_pack, py::arg("index"), py::arg("limit"));
}
