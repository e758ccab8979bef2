// Loaded before everything else (LD_PRELOAD): fails one allocation of the process, the n-th after
// arm(n). Memory of at least `least` bytes alone is counted. Spared are the few dozen bytes that
// torch needs to make a tensor of memory that it is given: without them torch ends the process
// (2.13).
#include <dlfcn.h>
#include <unwind.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static long left = 0;  // until one fails; 0: none will
static size_t smallest = 0;

void no_memory_arm(long n, size_t least) {
  smallest = least;
  __atomic_store_n(&left, n, __ATOMIC_SEQ_CST);
}
// How many were still to come; stops.
long no_memory_disarm() { return __atomic_exchange_n(&left, 0, __ATOMIC_SEQ_CST); }

static _Unwind_Reason_Code looks(_Unwind_Context* frame, void* found) {
  Dl_info info;
  const bool named = dladdr(reinterpret_cast<void*>(_Unwind_GetIP(frame)), &info) != 0 &&
                     info.dli_sname != nullptr;
  *static_cast<bool*>(found) = named && std::strcmp(info.dli_sname, "torch_from_blob") == 0;
  return *static_cast<bool*>(found) ? _URC_END_OF_STACK : _URC_NO_REASON;
}

static bool is_spared() {
  bool found = false;
  _Unwind_Backtrace(looks, &found);
  return found;
}

static bool fails(size_t bytes) {
  if (bytes < smallest || __atomic_load_n(&left, __ATOMIC_RELAXED) <= 0) return false;
  if (__atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST) != 0 || is_spared()) return false;
  errno = ENOMEM;
  return true;
}

void* malloc(size_t bytes) { return fails(bytes) ? nullptr : __libc_malloc(bytes); }
void* calloc(size_t n, size_t bytes) {
  return fails(n * bytes) ? nullptr : __libc_calloc(n, bytes);
}
void* realloc(void* old, size_t bytes) {
  return fails(bytes) ? nullptr : __libc_realloc(old, bytes);
}
void* memalign(size_t align, size_t bytes) {
  return fails(bytes) ? nullptr : __libc_memalign(align, bytes);
}
void* aligned_alloc(size_t align, size_t bytes) { return memalign(align, bytes); }
int posix_memalign(void** out, size_t align, size_t bytes) {
  void* made = memalign(align, bytes);
  if (made == nullptr) return ENOMEM;
  *out = made;
  return 0;
}
}
