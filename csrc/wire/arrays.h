// NumPy arrays as the extension module takes and gives them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>  // here, so that no file casts vectors without it

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "error.h"
#include "lender.h"

namespace gcext::wire {

namespace py = pybind11;

// n numbers that lie in an object, which is kept as long.
template <class T>
class Array {
 public:
  Array(py::object owner, const T* data, py::ssize_t size)
      : owner_(std::move(owner)), data_(data), size_(size) {}
  const T* data() const { return data_; }
  py::ssize_t size() const { return size_; }
  const py::object& owner() const { return owner_; }

 private:
  py::object owner_;
  const T* data_;
  py::ssize_t size_;
};

// The name of a dtype, "float32" of "torch.float32". torch's dtypes are few and never go, so their
// names are kept.
inline std::string dtype_name(const py::handle& dtype) {
  constexpr size_t kMost = 64;
  static auto* const known = new std::vector<std::pair<py::object, std::string>>;
  for (const auto& each : *known) {
    if (each.first.is(dtype)) return each.second;
  }
  std::string name = py::str(dtype);
  name = name.substr(name.rfind('.') + 1);
  if (known->size() < kMost && !py::isinstance<py::str>(dtype))
    known->emplace_back(py::reinterpret_borrow<py::object>(dtype), name);
  return name;
}

// Names that are looked up for every packet, made once.
struct Names {
#define GCEXT_NAME(name) const py::handle name = PyUnicode_InternFromString(#name)
  GCEXT_NAME(_contents);
  GCEXT_NAME(coded);
  GCEXT_NAME(data_ptr);
  GCEXT_NAME(dtype);
  GCEXT_NAME(contents);
  GCEXT_NAME(encoded);
  GCEXT_NAME(heads);
  GCEXT_NAME(index);
  GCEXT_NAME(is_cpu);
  GCEXT_NAME(joined);
  GCEXT_NAME(members);
  GCEXT_NAME(method);
  GCEXT_NAME(numel);
  GCEXT_NAME(scale);
  GCEXT_NAME(shape);
  GCEXT_NAME(stride);
  GCEXT_NAME(support);
  GCEXT_NAME(value);
#undef GCEXT_NAME
};

inline const Names& names() {
  static const Names all;
  return all;
}

// What a method without arguments returns.
inline py::object call(const py::handle& object, const py::handle& name) {
  PyObject* const result = PyObject_CallMethodNoArgs(object.ptr(), name.ptr());
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

template <class T>
constexpr const char* torch_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, int16_t>) return "int16";
  if constexpr (std::is_same_v<T, int32_t>) return "int32";
  if constexpr (std::is_same_v<T, int64_t>) return "int64";
  if constexpr (std::is_same_v<T, uint8_t>) return "uint8";
  return "";
}

// Whether an object is a tensor, in host memory, one-dimensional and contiguous. To read it as such
// takes a third of the time of its numpy().
inline bool is_flat_tensor(const py::handle& object) {
  if (py::isinstance<py::array>(object) || !py::hasattr(object, names().data_ptr)) return false;
  if (!py::getattr(object, names().is_cpu).is(py::handle(Py_True))) return false;
  const py::object stride = call(object, names().stride);
  return PyTuple_Check(stride.ptr()) && PyTuple_GET_SIZE(stride.ptr()) == 1 &&
         PyLong_AsLong(PyTuple_GET_ITEM(stride.ptr(), 0)) == 1;
}

template <class T>
bool holds(const py::handle& tensor) {
  return dtype_name(py::getattr(tensor, names().dtype)) == torch_name<T>();
}

template <class T>
Array<T> borrow_tensor(const py::handle& tensor) {
  const auto at = call(tensor, names().data_ptr).cast<uintptr_t>();
  return {py::reinterpret_borrow<py::object>(tensor), reinterpret_cast<const T*>(at),
          call(tensor, names().numel).cast<py::ssize_t>()};
}

// The NumPy array of an object: itself, or of a tensor what its numpy() returns. That must share
// the tensor's memory: a Message borrows it, and the packet alone keeps it until it is written.
inline py::object numpy_of(const py::handle& object) {
  if (py::isinstance<py::array>(object) || !py::hasattr(object, "numpy"))
    return py::reinterpret_borrow<py::object>(object);
  return object.attr("numpy")();
}

// The numbers of a NumPy array or a tensor.
template <class T>
Array<T> checked(const py::handle& given, const char* name) {
  if (is_flat_tensor(given) && holds<T>(given)) return borrow_tensor<T>(given);
  const py::object object = numpy_of(given);
  if (!py::isinstance<py::array_t<T>>(object))
    throw PackError(std::string("pack: ") + name + " must be a NumPy array of " +
                    py::str(py::dtype::of<T>()).cast<std::string>() + ", got " +
                    py::repr(py::type::of(object)).cast<std::string>() + ". Convert it first.");
  const auto array = py::reinterpret_borrow<py::array_t<T>>(object);
  if (array.ndim() != 1 ||
      (array.size() > 1 && array.strides(0) != static_cast<py::ssize_t>(sizeof(T))))
    throw PackError(std::string("pack: ") + name +
                    " must be one-dimensional and contiguous. Copy it first.");
  return {array, array.data(), array.size()};
}

constexpr int64_t kLarge = int64_t{1} << 17;  // bytes

// A new array of n numbers, whatever they are; a large one is of memory that was used before, as
// fresh pages take longer than to fill them.
template <class T>
py::array_t<T> new_array(int64_t n) {
  const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  if (bytes < kLarge || lender().take == nullptr) return py::array_t<T>(n);
  const auto give = [](void* own) { lender().give(own); };
  std::unique_ptr<void, void (*)(void*)> memory(lender().take(static_cast<size_t>(bytes)), give);
  const py::capsule owner(memory.get(), give);
  return py::array_t<T>(n, static_cast<T*>(memory.release()), owner);
}

template <class T>
py::array_t<T> array_of(const std::vector<T>& values) {
  py::array_t<T> array = new_array<T>(static_cast<int64_t>(values.size()));
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

template <class T>
std::vector<T> vector_of(const py::handle& object, const char* name) {
  const Array<T> array = checked<T>(object, name);
  return std::vector<T>(array.data(), array.data() + array.size());
}

// Calls visit(array) with the index array as int32 or int64.
template <class Visit>
auto with_index(const py::handle& given, const Visit& visit) {
  if (is_flat_tensor(given)) {
    if (holds<int32_t>(given)) return visit(borrow_tensor<int32_t>(given));
    if (holds<int64_t>(given)) return visit(borrow_tensor<int64_t>(given));
  }
  const py::object object = numpy_of(given);
  if (py::isinstance<py::array_t<int32_t>>(object)) return visit(checked<int32_t>(object, "index"));
  return visit(checked<int64_t>(object, "index"));
}

// n numbers that lie in a message.
template <class T>
py::array_t<T> array_of(const uint8_t* first, int64_t n) {
  py::array_t<T> array = new_array<T>(n);
  T* const out = array.mutable_data();
  const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  std::optional<py::gil_scoped_release> release;
  if (bytes >= kLarge) release.emplace();
  copy_bytes(first, bytes, out);
  return array;
}

}  // namespace gcext::wire
