// What csrc/ uses of torch's stable ABI, without torch: the operators compile unchanged, and every
// sanitizer sees all of their code.
//
// Memory of a tensor is exactly as long as its elements, so that a read or write beyond them is
// found. Parallel loops run on threads of their own, or one part after another.
#pragma once

#include <any>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace torch::headeronly {

enum class ScalarType : int8_t {
  Byte = 0,
  Short = 2,
  Int = 3,
  Long = 4,
  Half = 5,
  Float = 6,
  Double = 7,
  BFloat16 = 15
};

inline int64_t size_of(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return 1;
    case ScalarType::Short:
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    default:
      return 8;
  }
}

}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::ScalarType;

// An argument that an operator refuses.
class Refused : public std::exception {
 public:
  explicit Refused(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

inline void append(std::string* text, const char* x) { *text += x; }
inline void append(std::string* text, const std::string& x) { *text += x; }
template <class Number>
void append(std::string* text, const Number& x) {
  *text += std::to_string(x);
}

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::string text;
  (append(&text, parts), ...);
  throw Refused(text);
}

struct Device {
  int type() const { return 0; }
  int32_t index() const { return -1; }
};

struct Memory {
  explicit Memory(int64_t bytes) {
    if (bytes > 0 && posix_memalign(&data, 64, static_cast<size_t>(bytes)) != 0)
      throw std::bad_alloc();
  }
  ~Memory() { std::free(data); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data = nullptr;  // null where there are no bytes, as in torch
};

struct Opaque {
  std::vector<int64_t> sizes;
  ScalarType type;
  std::shared_ptr<Memory> memory;
};
using AtenTensorHandle = Opaque*;

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(AtenTensorHandle handle) : own_(handle) {}

  int64_t numel() const {
    int64_t product = 1;
    for (const int64_t size : own_->sizes) product *= size;
    return product;
  }
  int64_t dim() const { return static_cast<int64_t>(own_->sizes.size()); }
  int64_t size(int64_t i) const { return own_->sizes[static_cast<size_t>(i)]; }
  ScalarType scalar_type() const { return own_->type; }
  bool is_contiguous() const { return true; }
  bool is_cuda() const { return false; }
  Device device() const { return {}; }

  void* mutable_data_ptr() const { return own_->memory->data; }
  const void* const_data_ptr() const { return own_->memory->data; }
  template <class T>
  T* mutable_data_ptr() const {
    return static_cast<T*>(mutable_data_ptr());
  }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(const_data_ptr());
  }

 private:
  std::shared_ptr<Opaque> own_;
};

inline int aoti_torch_empty_strided(int64_t dims, const int64_t* sizes, const int64_t*,
                                    int32_t type, int32_t, int32_t, AtenTensorHandle* made) {
  int64_t bytes = headeronly::size_of(static_cast<ScalarType>(type));
  for (int64_t i = 0; i < dims; ++i)
    if (__builtin_mul_overflow(bytes, sizes[i], &bytes)) refuse("empty: too many elements.");
  if (bytes < 0 || bytes >> 26 != 0) refuse("empty: too large for a test.");
  *made = new Opaque{std::vector<int64_t>(sizes, sizes + dims), static_cast<ScalarType>(type),
                     std::make_shared<Memory>(bytes)};
  return 0;
}

template <class... Rest>
Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type, const Rest&...) {
  AtenTensorHandle made = nullptr;
  aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), nullptr,
                           static_cast<int32_t>(type), 0, -1, &made);
  return Tensor(made);
}

// How parallel loops run.
struct Threads {
  int count = 1;      // parts that a loop is cut into
  bool real = false;  // a thread each, or one after another
};
inline Threads& threads() {
  static Threads all;
  return all;
}

inline int get_num_threads() { return threads().count; }

template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t, const Body& body) {
  if (!threads().real) {
    for (int64_t i = begin; i < end; ++i) body(i, i + 1);
    return;
  }
  std::vector<std::thread> running;
  for (int64_t i = begin + 1; i < end; ++i) running.emplace_back([&body, i] { body(i, i + 1); });
  if (begin < end) body(begin, begin + 1);
  for (std::thread& each : running) each.join();
}

// Operators by name, as pointers to their functions.
inline std::vector<std::pair<std::string, std::any>>& operators() {
  static std::vector<std::pair<std::string, std::any>> all;
  return all;
}

struct Library {
  void def(const char*) {}
  template <class Function>
  void impl(const char* name, Function* function) {
    operators().emplace_back(name, function);
  }
};

// The operator of that name; its type must be the very one.
template <class Function>
Function* find_operator(const char* name) {
  for (const auto& [known, function] : operators())
    if (known == name) return std::any_cast<Function*>(function);
  std::abort();
}

}  // namespace torch::stable

using torch::stable::aoti_torch_empty_strided;
using torch::stable::AtenTensorHandle;

// There is no torch_from_blob here, as in torch 2.10, so results are tensors of their own.
using AOTITorchError = int32_t;
inline int32_t aoti_torch_layout_strided() { return 0; }

#define STD_TORCH_CHECK(condition, ...) \
  if (!(condition)) ::torch::stable::refuse(__VA_ARGS__)
#define TORCH_ERROR_CODE_CHECK(call) static_cast<void>(call)
#define TORCH_BOX(function) function
#define GCEXT_STUB_JOIN_(a, b) a##b
#define GCEXT_STUB_JOIN(a, b) GCEXT_STUB_JOIN_(a, b)
#define GCEXT_STUB_LIBRARY(m, id)                                          \
  static void GCEXT_STUB_JOIN(fill_library_, id)(torch::stable::Library&); \
  [[maybe_unused]] static const bool GCEXT_STUB_JOIN(library_, id) = [] {  \
    torch::stable::Library library;                                        \
    GCEXT_STUB_JOIN(fill_library_, id)(library);                           \
    return true;                                                           \
  }();                                                                     \
  static void GCEXT_STUB_JOIN(fill_library_, id)([[maybe_unused]] torch::stable::Library & m)
#define STABLE_TORCH_LIBRARY_IMPL(name, key, m) GCEXT_STUB_LIBRARY(m, __COUNTER__)
#define STABLE_TORCH_LIBRARY_FRAGMENT(name, m) GCEXT_STUB_LIBRARY(m, __COUNTER__)
