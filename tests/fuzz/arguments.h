// What the target `aggregate` makes arguments of, and how it runs an operator.
#pragma once

#include <stdexcept>

#include "make.h"
#include "operators.h"
#include "targets.h"

namespace gcext::fuzz {

// The bytes of the input, one choice each; then random ones that follow from them.
class Choices {
 public:
  explicit Choices(const Bytes& bytes)
      : bytes_(bytes), random(digest(bytes.data(), static_cast<int64_t>(bytes.size()))) {}
  int64_t below(int64_t n) {
    return at_ < bytes_.size() ? bytes_[at_++] * n / 256 : random.below(n);
  }
  bool once_in(int64_t n) { return below(n) == 0; }

 private:
  const Bytes& bytes_;
  size_t at_ = 0;

 public:
  Random random;
};

inline Tensor index_tensor(const Numbers& at, bool wide) {
  if (wide) return tensor_of(at);
  return tensor_of(std::vector<int32_t>(at.begin(), at.end()));
}

inline int64_t wrong_number(Random* random, int64_t old) {
  constexpr int64_t kEdges[] = {0, -1, 1, INT32_MAX, int64_t{1} << 31, INT64_MAX, INT64_MIN};
  return random->once_in(2) ? random->of(kEdges) : old + random->within(-2, 2);
}

// Runs the operator with one part and with several: both answer alike or neither does.
template <class Run>
Optional twice(const Run& run) {
  Optional first, second;
  for (Optional* each : {&first, &second}) {
    threads().count = each == &first ? 1 : 3;
    try {
      *each = run();
      ++counts().operators;
    } catch (const Refused&) {
      ++counts().operators_refused;
    } catch (const std::bad_alloc&) {
      broken("an operator asks for memory that no argument justifies");
    } catch (const std::length_error&) {
      broken("an operator asks for memory that no argument justifies");
    }
  }
  if (first.has_value() != second.has_value()) broken("refused or not by the number of threads");
  if (!first.has_value()) return first;
  const int64_t bytes = first->numel() * size_of(first->scalar_type());
  if (second->numel() != first->numel() ||
      (bytes > 0 && std::memcmp(first->const_data_ptr(), second->const_data_ptr(),
                                static_cast<size_t>(bytes)) != 0))
    broken("another result with more threads");
  return first;
}

// What packets' values decode to, from arguments of any kind.
void run_values(Choices* choices);

}  // namespace gcext::fuzz
