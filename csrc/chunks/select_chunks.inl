// Bodies of select_chunks.h for one instruction set: plain loops, which the compiler vectorises.
#include "select_chunks.h"

namespace gcext::GCEXT_ISA {
namespace {

// Keys are below 2^31, so they compare as signed, which every instruction set has.
inline int32_t signed_key(uint32_t bits) { return static_cast<int32_t>(key_of(bits)); }

uint32_t count_from(const uint32_t* bits, int64_t n, int32_t low) {
  uint32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += signed_key(bits[i]) >= low;
  return count;
}

// Bit by bit from the highest in which two keys differ; a trial that leaves exactly k ends it
// early, among a hundred keys after some eight.
uint32_t kth(const uint32_t* bits, int64_t n, int64_t k) {
  int32_t most = 0, least = INT32_MAX;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = signed_key(bits[i]);
    most = key > most ? key : most;
    least = key < least ? key : least;
  }
  if (k == 1 || most == least) return static_cast<uint32_t>(most);
  if (k == n) return static_cast<uint32_t>(least);
  int bit = 31 - __builtin_clz(static_cast<uint32_t>(most ^ least));
  int32_t key = most >> (bit + 1) << (bit + 1);
  for (; bit >= 0; --bit) {
    const int32_t trial = key | int32_t{1} << bit;
    const int64_t count = count_from(bits, n, trial);
    if (count < k) continue;
    key = trial;
    if (count == k) {
      least = INT32_MAX;
      for (int64_t i = 0; i < n; ++i) {
        const int32_t own = signed_key(bits[i]);
        least = own >= key && own < least ? own : least;
      }
      return static_cast<uint32_t>(least);
    }
  }
  return static_cast<uint32_t>(key);
}

int64_t greater(const uint32_t* bits, int64_t n, uint32_t key) {
  return count_from(bits, n, static_cast<int32_t>(key) + 1);
}

}  // namespace

const ChunkTable select_chunks_table = {kth, greater};

}  // namespace gcext::GCEXT_ISA
