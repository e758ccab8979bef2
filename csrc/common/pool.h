// Memory that is used again: scratch of the kernels, and results of theirs that are large. What
// malloc gives for these comes from the system and goes back to it, and each fresh page of 4 KiB
// costs a fault, at the sizes of a gradient more than the kernel itself.
//
// Blocks that were given back are kept for whoever asks next. One that a minute and the last
// kIdleRequests had no use for goes with the next request, and pool_release frees them at once; so
// what is kept is at most what was in use at once not long ago.
#pragma once

#include <cstddef>
#include <cstdint>

#include "stable.h"

namespace gcext {

constexpr size_t kPooled = size_t{1} << 17;  // less than this malloc keeps itself

// Of at least `bytes`, aligned for any vector. std::bad_alloc where there is no memory, after all
// that is kept has gone.
void* pool_take(size_t bytes);
void pool_give(void* block);
// Frees what is kept and had no use for so many seconds; returns how many bytes that was.
int64_t pool_release(double idle);
// What is kept now.
int64_t pool_kept();

// For containers of trivial elements: leaves new ones uninitialised, as zeroing them would cost a
// pass.
template <class T>
struct Pooled {
  using value_type = T;
  Pooled() = default;
  template <class U>
  Pooled(const Pooled<U>&) {}
  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    return static_cast<T*>(bytes < kPooled ? ::operator new(bytes) : pool_take(bytes));
  }
  void deallocate(T* at, size_t n) {
    n * sizeof(T) < kPooled ? ::operator delete(at) : pool_give(at);
  }
  template <class U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <class U, class... Args>
  void construct(U* at, Args&&... args) {
    ::new (static_cast<void*>(at)) U(std::forward<Args>(args)...);
  }
  bool operator==(const Pooled&) const { return true; }
  bool operator!=(const Pooled&) const { return false; }
};

// A new CPU tensor of one dimension, over memory of the pool where it is large. Fails as `empty`.
// dtype: Byte, Short, Int, Long or Float.
Tensor pooled_empty(int64_t n, ScalarType dtype);

// A new float32 result of numel elements on the CPU, made in tiles: body(first, last, data) fills
// the tiles [first, last), a contiguous range a thread, none smaller than `grain` tiles.
template <class Body>
Tensor fill_tiles(int64_t numel, int64_t tile, int64_t grain, const Body& body) {
  Tensor out = pooled_empty(numel, ScalarType::Float);
  float* const data = out.mutable_data_ptr<float>();
  const int64_t tiles = numel / tile + (numel % tile != 0);
  const int64_t parts = parts_for(tiles, grain);
  parallel_parts(
      parts, [&](int64_t part) { body(tiles * part / parts, tiles * (part + 1) / parts, data); });
  return out;
}

}  // namespace gcext
