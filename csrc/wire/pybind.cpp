// The module gcext._wire: packets to bytes and back; torch is unknown here. Typed in
// gcext/_wire.pyi, wrapped by gcext/_packet/wire.py.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "../bits.h"
#include "../common/fpenv.h"
#include "../common/huge_pages.h"
#include "../common/isa.h"
#include "blocks.h"
#include "budget.h"
#include "groups.h"
#include "lender.h"
#include "packets.h"

namespace gcext::wire {
namespace {

uint64_t digest_of(const py::function& digest, const uint8_t* first, int64_t bytes) {
  return digest(py::memoryview::from_memory(first, bytes)).cast<uint64_t>();
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

// Head, pieces and checksum as one message.
py::bytes seal(const Message& message, const py::function& digest) {
  const int64_t hashed = kHeadBytes + message.bytes();
  auto packet =
      py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, hashed + kChecksumBytes));
  if (!packet) throw py::error_already_set();
  auto* out = reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(packet.ptr()));
  {
    const py::gil_scoped_release release;
    advise_huge_pages(out, hashed);
    std::memcpy(out, kMagic, 4);
    out[4] = kVersion;
    message.write(out + kHeadBytes);
  }
  const uint64_t sum = digest_of(digest, out, hashed);
  std::memcpy(out + hashed, &sum, 8);
  return packet;
}

py::bytes pack(const py::object& packet, const py::function& digest) {
  const KernelFpEnv env;
  Message message;
  const bool composed = put_body(&message, packet);
  py::bytes bytes = seal(message, digest);
  if (composed) {  // the rules are many, and the decoder has them
    try {
      check_message(open_frame(reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(bytes.ptr())),
                               PyBytes_GET_SIZE(bytes.ptr())),
                    nullptr, false, nullptr);
    } catch (const DecodeError& error) {
      throw PackError(
          std::string("pack: a merged packet or a sum must be canonical. Use merge or sum. ") +
          error.what());
    }
  }
  return bytes;
}

// The body's cursor, once frame and checksum are right.
Cursor open_checked(const Bytes& view, const py::function& digest) {
  const uint8_t* message = view.data();
  const int64_t hashed = view.size() - kChecksumBytes;
  const Cursor cursor = open_frame(message, view.size());
  uint64_t sum;
  std::memcpy(&sum, message + hashed, 8);
  if (digest_of(digest, message, hashed) != sum)
    cursor.fail("checksum", "checksum", message + hashed,
                "does not match the bytes. Fetch the message again.");
  return cursor;
}

Expectation expectation_of(const py::object& expect) {
  Expectation expectation;
  const auto pair = expect.cast<py::tuple>();
  expectation.group = pair[0].cast<bool>();
  expectation.shapes = pair[1].cast<std::vector<std::vector<int64_t>>>();
  return expectation;
}

py::tuple pair_of(const Cost& cost) { return py::make_tuple(cost.work, cost.memory); }

// budget: work and memory; None: the default one where a shape is expected, else without limit.
py::object unpack(const py::buffer& buffer, const py::function& digest, const py::function& build,
                  const py::object& expect, bool located, const py::object& budget) {
  const KernelFpEnv env;  // a scale may be denormal, on its way to a double too
  const Bytes view(buffer);
  const bool pinned = !expect.is_none(), given = !budget.is_none();
  Expectation expectation;
  if (pinned) expectation = expectation_of(expect);
  Cost most;
  if (given) {
    const auto pair = budget.cast<py::tuple>();
    most = {pair[0].cast<int64_t>(), pair[1].cast<int64_t>()};
  } else if (pinned) {
    most = default_budget(expected_numel(expectation), view.size());
  }
  Cursor cursor = open_checked(view, digest);
  {
    const py::gil_scoped_release release;
    Meter meter(most);
    check_message(cursor, pinned ? &expectation : nullptr, located,
                  given || pinned ? &meter : nullptr);
  }
  const Body body = take_body(&cursor, false);
  if (body.method != kGroup) return read_packet(body, cursor, build, located);
  std::vector<Body> bodies;
  for (int64_t i = 0; i < body.members; ++i) bodies.push_back(take_body(&cursor, true));
  return read_group(bodies, cursor, build, located);
}

// Work and memory of a message; only its frame and structure are checked.
py::tuple cost(const py::buffer& buffer, const py::function& digest) {
  const Bytes view(buffer);
  Cursor cursor = open_checked(view, digest);
  Meter meter({kUnlimited, kUnlimited});
  {
    const py::gil_scoped_release release;
    const Body body = take_body(&cursor, false);
    const bool group = body.method == kGroup;
    for (int64_t i = 0; i < (group ? body.members : 1); ++i)
      meter.add(group ? take_body(&cursor, true) : body, cursor);
  }
  return pair_of(meter.spent());
}

// Every field of a message in order, as far as its structure can be read; the contents of the
// streams, the checksum and what the message is expected to be play no part.
py::list trace(const py::buffer& buffer) {
  const Bytes view(buffer);
  std::vector<Field> fields;
  try {
    Cursor cursor = open_frame(view.data(), view.size(), &fields);
    const Body body = take_body(&cursor, false);
    for (int64_t i = 0; i < (body.method == kGroup ? body.members : 0); ++i) {
      cursor.scope("members[" + std::to_string(i) + "].");
      take_body(&cursor, true);
    }
    cursor.scope("");
    if (cursor.left() == 0) fields.push_back({"checksum", cursor.offset_of(cursor.at()), 8, -1, 0});
  } catch (const DecodeError&) {
  }
  py::list out;
  for (const Field& field : fields)
    out.append(py::dict(py::arg("name") = field.name, py::arg("offset") = field.offset,
                        py::arg("size") = field.bytes, py::arg("value") = field.value,
                        py::arg("missing") = field.missing));
  return out;
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
      PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<py::object> kept;
      const py::object& type =
          kept.call_once_and_store_result([] {
                return py::object(py::module_::import("gcext._packet.errors").attr("DecodeError"));
              })
              .get_stored();
      PyErr_SetObject(type.ptr(), type(error.code, error.field, error.offset, error.what()).ptr());
    } catch (const PackError& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    }
  });
  m.attr("TILE") = gcext::kTile;
  m.attr("NO_DIM") = kNoDim;
  m.def("isa", [] { return gcext::isa_name(gcext::isa()); });
  m.def(
      "lend",
      [](uintptr_t threads, uintptr_t run, uintptr_t take, uintptr_t give) {
        set_lender({reinterpret_cast<decltype(Lender::threads)>(threads),
                    reinterpret_cast<decltype(Lender::run)>(run),
                    reinterpret_cast<decltype(Lender::take)>(take),
                    reinterpret_cast<decltype(Lender::give)>(give)});
      },
      py::arg("threads"), py::arg("run"), py::arg("take"), py::arg("give"));
  m.def("pack", pack, py::arg("packet"), py::arg("digest"));
  m.def("unpack", unpack, py::arg("message"), py::arg("digest"), py::arg("build"),
        py::arg("expect") = py::none(), py::arg("located") = false, py::arg("budget") = py::none());
  m.def("cost", cost, py::arg("message"), py::arg("digest"));
  m.def(
      "default_budget",
      [](const py::object& expect, int64_t bytes) {
        return pair_of(default_budget(expected_numel(expectation_of(expect)), bytes));
      },
      py::arg("expect"), py::arg("bytes"));
  m.def("expect_polar", expect_polar, py::arg("level"), py::arg("tenth"));
  m.attr("UNLIMITED") = kUnlimited;
  m.def(
      "fits_blocks",
      [](int64_t rows, int64_t cols, int64_t block, int64_t most) {
        return fits_blocks({rows, cols}, block, most);
      },
      py::arg("rows"), py::arg("cols"), py::arg("block"), py::arg("most"));
  m.def("trace", trace, py::arg("message"));
  m.def("merge", merge_packets, py::arg("packets"), py::arg("build"));
  m.def("unmerge", unmerge_packet, py::arg("packet"), py::arg("build"));
  m.def("bits_pack", bits_pack, py::arg("value"), py::arg("b"));
  m.def("bits_unpack", bits_unpack, py::arg("plane"), py::arg("n"), py::arg("b"));
  m.def("rice_pack", rice_pack, py::arg("index"), py::arg("limit"));
}
