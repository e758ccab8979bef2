// Loaded before everything else (LD_PRELOAD): fails one allocation of the process, the n-th after
// arm(n). Memory of at least `least` bytes alone is counted.
#include <cerrno>
#include <cstddef>

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

static bool fails(size_t bytes) {
  if (bytes < smallest || __atomic_load_n(&left, __ATOMIC_RELAXED) <= 0) return false;
  if (__atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST) != 0) return false;
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
