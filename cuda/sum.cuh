// The sum of tensor and memory, which kernels compute anew whenever they read it; and what sums
// lack that stand for a residual, csrc/common/source.h.
#pragma once

#include "common.cuh"

namespace gcext {

// What memory lacks, in registers.
struct Held {
  Taken taken;
  int64_t cut;

  // Element i less what was sent of it.
  __device__ float rest(float m, int64_t i) const {
    Taken at = taken;
    at.low += i >= cut;
    return rest_of(m, at);
  }
};

__device__ inline Held held_of(const Source& source) {
  if (source.sent == nullptr) return {{UINT32_MAX, 0, 0}, INT64_MAX};  // no key is that large
  return {taken_of(source.sent), source.sent[kSentCut]};
}

// One thread, when memory has been read: where the call is refused next is a copy of sent, and else
// nothing is sent yet.
__device__ inline void begin_next(const Source& source, int64_t* next, bool refused) {
  if (next == nullptr) return;
  const int64_t* const sent = refused ? source.sent : nullptr;
  if (sent == nullptr) {
    set_sent(next, kInfKey, 0, 0);
  } else {
    set_sent(next, sent[kSentKey], sent[kSentCut], sent[kSentBits]);
  }
}

__device__ inline float sum_at(const Source& s, int64_t i) {
  return s.memory == nullptr ? s.tensor[i] : s.tensor[i] + s.b * s.memory[i];
}

// The same of a memory that lacks something.
__device__ inline float held_sum_at(const Source& s, const Held& held, int64_t i) {
  return s.memory == nullptr ? s.tensor[i] : s.tensor[i] + s.b * held.rest(s.memory[i], i);
}

// Notes why the sum of element i is not finite.
__device__ inline void note(const Source& s, int64_t i, FirstNonFinite* first) {
  const uint64_t at = static_cast<uint64_t>(i);
  atomic_min(&first->sum, at);
  if (key_of(s.tensor[i]) >= kInfKey) atomic_min(&first->tensor, at);
  if (s.memory != nullptr && key_of(s.memory[i]) >= kInfKey) atomic_min(&first->memory, at);
}

}  // namespace gcext
