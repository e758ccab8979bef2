#include "pool.h"

#include <chrono>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "huge_pages.h"

// In torch from 2.11 on; on 2.10 it is absent, and results are torch's own memory.
extern "C" __attribute__((weak)) AOTITorchError
torch_from_blob(void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides,
                int64_t storage_offset, int32_t dtype, int32_t device_type, int32_t device_index,
                AtenTensorHandle* made, int32_t layout, const uint8_t* metadata,
                int64_t metadata_size, void (*deleter)(void* data, void* context), void* context);

namespace gcext {
namespace {

constexpr size_t kHuge = size_t{1} << 21;
constexpr size_t kHeader = 64;   // in front of what is taken: the size of the whole block
constexpr size_t kMaxWaste = 2;  // a block may be so many times as large as what is asked for
// A block goes after both. Of a model of hundreds of tensors a step makes thousands of requests,
// and of a large one it takes long; of small ones, a round may come every few minutes.
constexpr uint64_t kIdleRequests = 128;
constexpr double kIdleSeconds = 60;

using Clock = std::chrono::steady_clock;

struct Kept {
  char* block;
  uint64_t request;  // which one came last before it was given back
  Clock::time_point time;

  double idle(Clock::time_point now) const {
    return std::chrono::duration<double>(now - time).count();
  }
};

struct Pool {
  std::mutex mutex;
  std::vector<Kept> kept;
  uint64_t requests = 0;
};

// Never destroyed: results may outlive everything else.
Pool& pool() {
  static Pool* const the = new Pool;
  return *the;
}

size_t& size_of(char* block) { return *reinterpret_cast<size_t*>(block); }

// Frees the kept blocks that `goes` is true of, and returns how many bytes these have.
template <class Goes>
size_t free_kept(Pool& the, const Goes& goes) {
  size_t bytes = 0, left = 0;
  for (const Kept& each : the.kept) {
    if (goes(each)) {
      bytes += size_of(each.block);
      std::free(each.block);
    } else {
      the.kept[left++] = each;
    }
  }
  the.kept.resize(left);
  return bytes;
}

// A lock that is not waited for for ever: after a fork a thread may have it that is no more, and
// who does not get it goes without the pool.
std::unique_lock<std::mutex> lock_soon(Pool& the) {
  std::unique_lock<std::mutex> lock(the.mutex, std::try_to_lock);
  for (int i = 0; i < 1000 && !lock; ++i) {
    std::this_thread::yield();
    lock.try_lock();
  }
  return lock;
}

char* new_block(size_t size) {
  // Not aligned_alloc: some refuse a size that is no multiple of the alignment.
  void* memory = nullptr;
  if (posix_memalign(&memory, size < kHuge ? kHeader : kHuge, size) != 0) return nullptr;
  char* const block = static_cast<char*>(memory);
  advise_huge_pages(block, static_cast<int64_t>(size));
  size_of(block) = size;
  return block;
}

}  // namespace

void* pool_take(size_t bytes) {
  if (bytes > SIZE_MAX / 2) throw std::bad_alloc();
  // Multiples of an eighth of a power of two: requests that differ little are served alike.
  size_t step = kHeader;
  while (step * 16 <= bytes) step *= 2;
  const size_t size = (bytes + kHeader + step - 1) / step * step;
  Pool& the = pool();
  if (const auto lock = lock_soon(the)) {
    ++the.requests;
    const auto now = Clock::now();
    size_t best = the.kept.size();
    for (size_t i = 0; i < the.kept.size(); ++i) {
      char* const block = the.kept[i].block;
      const size_t its = size_of(block);
      if (its >= size && its / kMaxWaste <= size &&
          (best == the.kept.size() || its < size_of(the.kept[best].block)))
        best = i;
    }
    char* found = nullptr;
    if (best < the.kept.size()) {
      found = the.kept[best].block;
      the.kept[best] = the.kept.back();
      the.kept.pop_back();
    }
    free_kept(the, [&](const Kept& each) {
      return the.requests - each.request > kIdleRequests && each.idle(now) > kIdleSeconds;
    });
    if (found != nullptr) return found + kHeader;
  }
  char* block = new_block(size);
  if (block == nullptr && pool_release(0) > 0) block = new_block(size);
  if (block == nullptr) throw std::bad_alloc();
  return block + kHeader;
}

void pool_give(void* at) {
  char* const block = static_cast<char*>(at) - kHeader;
  Pool& the = pool();
  if (const auto lock = lock_soon(the)) {
    try {
      the.kept.push_back({block, the.requests, Clock::now()});
      return;
    } catch (const std::bad_alloc&) {
    }
  }
  std::free(block);
}

int64_t pool_release(double idle) {
  Pool& the = pool();
  size_t bytes = 0;
  if (const auto lock = lock_soon(the)) {
    const auto now = Clock::now();
    bytes = free_kept(the, [&](const Kept& each) { return each.idle(now) >= idle; });
  }
  return static_cast<int64_t>(bytes);
}

int64_t pool_kept() {
  Pool& the = pool();
  size_t bytes = 0;
  if (const auto lock = lock_soon(the))
    for (const Kept& each : the.kept) bytes += size_of(each.block);
  return static_cast<int64_t>(bytes);
}

Tensor pooled_empty(int64_t n, ScalarType dtype) {
  const size_t size = dtype == ScalarType::Long    ? 8
                      : dtype == ScalarType::Short ? 2
                      : dtype == ScalarType::Byte  ? 1
                                                   : 4;
  const size_t bytes = static_cast<size_t>(n) * size;
  if (bytes < kPooled || torch_from_blob == nullptr) return empty({n}, dtype);
  void* at = nullptr;
  try {
    at = pool_take(bytes);
  } catch (const std::bad_alloc&) {
    return empty({n}, dtype);  // has the error
  }
  // Where torch fails, it may have called the deleter, or not.
  static thread_local void* given = nullptr;
  given = nullptr;
  const auto give = [](void* data, void*) {
    given = data;
    pool_give(data);
  };
  const int64_t stride = 1;
  AtenTensorHandle made = nullptr;
  const auto failed =
      torch_from_blob(at, 1, &n, &stride, 0, static_cast<int32_t>(dtype), 0, -1, &made,
                      aoti_torch_layout_strided(), nullptr, 0, give, nullptr);
  if (failed != 0 && given != at) pool_give(at);
  GCEXT_CHECK(failed == 0, "can't allocate memory for ", n, " elements.");
  return Tensor(made);
}

namespace {

int64_t release_memory(double idle) { return pool_release(idle); }
int64_t kept_memory() { return pool_kept(); }

Tensor pooled_floats(int64_t n) {
  GCEXT_CHECK(n >= 0, "pooled_floats: n must not be negative, got ", n, ".");
  return pooled_empty(n, ScalarType::Float);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gcext, m) {
  m.def("release_memory(float idle) -> int");
  m.def("kept_memory() -> int");
  m.def("pooled_floats(int n) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(gcext, CompositeExplicitAutograd, m) {
  m.impl("release_memory", TORCH_BOX(&release_memory));
  m.impl("kept_memory", TORCH_BOX(&kept_memory));
  m.impl("pooled_floats", TORCH_BOX(&pooled_floats));
}

}  // namespace gcext
