// NumPy arrays as the extension module takes and gives them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"

namespace gcext::wire {

namespace py = pybind11;

// The NumPy array of an object: itself, or of a tensor what its numpy() returns. That must share
// the tensor's memory: a Message borrows it, and the packet alone keeps it until it is written.
inline py::object numpy_of(const py::handle& object) {
  if (py::isinstance<py::array>(object) || !py::hasattr(object, "numpy"))
    return py::reinterpret_borrow<py::object>(object);
  return object.attr("numpy")();
}

template <class T>
py::array_t<T> checked(const py::handle& given, const char* name) {
  const py::object object = numpy_of(given);
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
auto with_index(const py::handle& given, const Visit& visit) {
  const py::object object = numpy_of(given);
  if (py::isinstance<py::array_t<int32_t>>(object)) return visit(checked<int32_t>(object, "index"));
  return visit(checked<int64_t>(object, "index"));
}

// n numbers that lie in a message.
template <class T>
py::array_t<T> array_of(const uint8_t* first, int64_t n) {
  py::array_t<T> array(n);
  if (n > 0) std::memcpy(array.mutable_data(), first, sizeof(T) * static_cast<size_t>(n));
  return array;
}

}  // namespace gcext::wire
