// What the kernels that compress a*tensor + b*memory read, and what they report.
#pragma once

#include <cstdint>

#include "scalar.h"

namespace gcext {

// What was sent of a sum that still stands in memory, int64[3]: its elements of a key above
// kSentKey, and those of that key before index kSentCut. They were sent as kSentBits with their own
// sign, or, where that is negative, as they are.
enum SentField { kSentKey, kSentCut, kSentBits, kSentSize };

GCEXT_HD inline void set_sent(int64_t* sent, int64_t key, int64_t cut, int64_t bits) {
  sent[kSentKey] = key;
  sent[kSentCut] = cut;
  sent[kSentBits] = bits;
}

// The same for elements all before the cut, or all behind it, where `low` is one more: those with a
// key from low on were sent, as (element & keep) | bits.
struct Taken {
  uint32_t low, keep, bits;
};

GCEXT_HD inline Taken taken_of(const int64_t* sent) {
  const bool own = sent[kSentBits] < 0;
  return {static_cast<uint32_t>(sent[kSentKey]), own ? UINT32_MAX : 0x80000000u,
          own ? 0 : static_cast<uint32_t>(sent[kSentBits])};
}

// How many of the n elements from `begin` on are before the cut.
inline int64_t before_cut(const int64_t* sent, int64_t begin, int64_t n) {
  const int64_t cut = sent[kSentCut] - begin;
  return cut < 0 ? 0 : cut < n ? cut : n;
}

// A zero was sent as positive, whatever its sign: m + 0 has none. Without a branch, which keeps
// compilers from vectors: m - 0 is m.
GCEXT_HD inline float rest_of(float m, const Taken& taken) {
  const uint32_t all = 0 - static_cast<uint32_t>(key_of(m) >= taken.low);
  return m - float_of(((bits_of(m + 0.0f) & taken.keep) | taken.bits) & all);
}

struct Source {
  const float* tensor;
  const float* memory;  // nullptr: acc = a*tensor
  float* out;           // nullptr: acc is not stored
  float a, b;
  const int64_t* sent = nullptr;  // what is missing from memory; nullptr: nothing
};

GCEXT_HD inline bool in_place(const Source& source) {
  return source.out != nullptr && source.out == source.memory;
}

// Whether a pass may leave the sums in out, for later ones: where that is not the memory, which
// nothing may be written to before all sums are known to be finite.
GCEXT_HD inline bool keeps_sums(const Source& source) {
  return source.out != nullptr && !in_place(source);
}

// What passes read after one that left the sums there.
inline Source kept_sums(const Source& source) {
  return keeps_sums(source) ? Source{source.out, nullptr, source.out, 1, 1} : source;
}

// 16-bit floats, of any alignment.
struct Halves {
  const uint8_t* at = nullptr;
  bool brain = false;  // bfloat16

  float operator[](int64_t i) const {
    uint16_t code;
    memcpy(&code, at + 2 * i, sizeof code);
    return brain ? float_of_brain(code) : float_of_half(code);
  }
};

// What CPU kernels read. A tensor of 16-bit floats is never added to a memory in place.
struct HostSource : Source {
  Halves half = {};   // in the place of tensor
  int64_t first = 0;  // the element that tensor begins with
};

inline HostSource kept_sums(const HostSource& source) {
  const Source& own = source;
  return keeps_sums(own) ? HostSource{kept_sums(own)} : source;
}

// An element of the tensor, where speed does not matter.
inline float tensor_at(const HostSource& source, int64_t i) {
  return source.half.at != nullptr ? source.half[i] : source.tensor[i - source.first];
}

// Elements that are read soon, which bodies ask for while they are busy with others: loads of them
// would wait for memory, and what computes for it. An address is never read, and may be anything.
struct Ahead {
  uintptr_t tensor, memory;
  uintptr_t size;  // bytes of an element of the tensor

  Ahead(const HostSource& source, int64_t at) {
    const auto place = [](const void* from, int64_t bytes) {
      return reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(bytes);
    };
    const bool half = source.half.at != nullptr;
    size = half ? 2 : sizeof(float);
    tensor = half ? place(source.half.at, 2 * at) : place(source.tensor, 4 * (at - source.first));
    memory = source.memory == nullptr ? tensor : place(source.memory, 4 * at);
  }

  // Of 16 elements from the i-th on, what a line of the cache holds.
  void ask(int64_t i) const {
    const auto by = static_cast<uintptr_t>(i);
    __builtin_prefetch(reinterpret_cast<const void*>(tensor + size * by));
    __builtin_prefetch(reinterpret_cast<const void*>(memory + sizeof(float) * by));
  }
};

// The fields of an operator's `info`, int64[4].
enum InfoField { kInfoCount, kInfoStatus, kInfoWhere, kInfoMean, kInfoSize };

enum SelectStatus : int64_t {
  kSelectOk = 0,
  kSelectTensor = 1,    // tensor is not finite at `where`; nothing was written
  kSelectMemory = 2,    // memory was not finite at `where`
  kSelectOverflow = 3,  // both were finite, their sum at `where` is not
  kSelectNoMemory = 4,  // out of memory for the candidates
  kSelectScaled = 5,    // finite, but what is sent for it might not be; csrc/wangni.h
  kSelectRotated = 6,   // finite, but too large to be rotated; csrc/rotate.h
  // 7 is set in Python, gcext/_native/status.py, and 5 there, too
  kSketchOverflow = 8,    // a sum of the sketch is not finite in float32
  kSelectTransform = 16,  // finite, but too large to be transformed and back
};

}  // namespace gcext
