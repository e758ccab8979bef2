// Counts what the kernels of one library do to memory. GCC's -fsanitize=thread puts a call before
// every access of the kernels; here those calls lead to counters instead of ThreadSanitizer.
// Counts, not times: no cache, no queue and no clock is modelled.
//
// An access goes to its lane's log. Where lanes converge (a warp operation, a barrier, the end),
// the logs of the lanes that meet are brought together: the r-th access of each lane at one place
// in the code is one access of the warp, and
//
//   global   it requests the distinct 32-byte sectors that its lanes touch;
//   shared   it takes as many wavefronts as some bank has to give words of 4 bytes, in turns of 32,
//            16 or 8 lanes for accesses of up to 4, 8 or 16 bytes; those beyond one a turn are
//            conflicts;
//   atomics  lanes meet that give the same address.
//
// A float4 is one access, and so is a copy of any struct of up to 16 bytes; a longer one is taken
// as accesses of 8. Where the compiler stores the words of a struct one by one, those of one lane,
// one after the other in program and memory and within 16 aligned bytes of global memory, are taken
// together, likewise bytes within a word. Not counted: fiber stacks (a GPU's registers and local
// memory), arguments and constants, the emulator's own data.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "count_calls.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Of this library: constants, and what the launchers keep.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));

// What tests/emu/count.py reads, field by field.
struct CountedLaunch {
  int64_t kernel, blocks, threads, stream;
  int64_t reads, writes;                  // accesses of a warp to global memory
  int64_t read_bytes, write_bytes;        // that its lanes asked for
  int64_t read_sectors, write_sectors;    // that its accesses requested, summed over them
  int64_t block_reads, block_writes;      // distinct ones of a block, summed over the blocks
  int64_t once_reads, once_writes, once;  // distinct ones of the launch; once: either, or atomic
  int64_t atomics, atomic_warps, atomic_sectors, atomic_addresses, atomic_most;  // global memory
  int64_t shared, wavefronts, conflicts;                                         // of warps
  int64_t shared_atomics, shared_atomic_warps, shared_atomic_addresses, shared_atomic_most;
  int64_t barriers, barriers_most;  // of all blocks, of one
  int64_t warp_ops;                 // arrivals of lanes
};

struct CountedPlace {
  int64_t kernel, kind, code;  // code: from the beginning of the library
  int64_t warps, lanes, sectors, wavefronts, conflicts, addresses, most;
};

namespace {

constexpr unsigned kLanes = 32;
constexpr uint64_t kSector = 32, kPageSectors = 128;
constexpr uint64_t kStackBytes = 64 << 10;  // kStack of cuemu.h

enum Kind : uint8_t { kRead, kWrite, kSharedRead, kSharedWrite, kAtomic, kSharedAtomic };

struct Record {
  const void* code;
  uint64_t at;
  const void* last_code;  // of what was taken together
  uint8_t bytes, piece;
  Kind kind;
};

struct Lane {
  std::vector<Record> log;
  uint64_t stack_end = 0;
  int64_t barriers = 0;
  bool here = false;  // waits for others, or has ended
};

struct Page {
  uint64_t launch = 0;
  uint32_t reader[kPageSectors], writer[kPageSectors];  // the last block, from 1 on
  bool known[kPageSectors], read[kPageSectors], written[kPageSectors];
};

struct Group {
  unsigned count = 0;
  uint64_t at[kLanes];
  uint8_t bytes[kLanes];
};

std::vector<std::string> names;
std::vector<CountedLaunch> launches;
std::map<std::tuple<int64_t, int, const void*>, CountedPlace> places;
std::unordered_map<uint64_t, Page*> pages;
Page* recent[64];
uint64_t recent_number[64];

CountedLaunch* launch = nullptr;
uint64_t launch_number = 0;
uint32_t block_number = 0;
std::vector<Lane> lanes;
Lane* current = nullptr;
bool in_atomic = false;
uint64_t threads_begin = 0, threads_bytes = 0, shared_begin = 0, shared_bytes = 0;
const void* const* arguments_at = nullptr;
const size_t* arguments_bytes = nullptr;

Page& page_of(uint64_t number) {
  const size_t slot = number % 64;
  if (recent[slot] == nullptr || recent_number[slot] != number) {
    Page*& found = pages[number];
    if (found == nullptr) found = new Page();
    recent[slot] = found;
    recent_number[slot] = number;
  }
  Page& page = *recent[slot];
  if (page.launch != launch_number) {
    page = {};
    page.launch = launch_number;
  }
  return page;
}

void touch(uint64_t sector, bool read, bool written) {
  Page& page = page_of(sector / kPageSectors);
  const uint64_t s = sector % kPageSectors;
  launch->once += !page.known[s];
  page.known[s] = true;
  if (read) {
    launch->once_reads += !page.read[s];
    launch->block_reads += page.reader[s] != block_number;
    page.read[s] = true;
    page.reader[s] = block_number;
  }
  if (written) {
    launch->once_writes += !page.written[s];
    launch->block_writes += page.writer[s] != block_number;
    page.written[s] = true;
    page.writer[s] = block_number;
  }
}

// The distinct sectors of an access.
int64_t sectors_of(const Group& group, bool read, bool written) {
  uint64_t sector[2 * kLanes];
  size_t count = 0;
  for (unsigned i = 0; i < group.count; ++i) {
    const uint64_t first = group.at[i] / kSector,
                   last = (group.at[i] + group.bytes[i] - 1) / kSector;
    for (uint64_t s = first; s <= last; ++s) {
      if (count == 0 || sector[count - 1] != s) sector[count++] = s;
    }
  }
  std::sort(sector, sector + count);
  count = static_cast<size_t>(std::unique(sector, sector + count) - sector);
  for (size_t i = 0; i < count; ++i) touch(sector[i], read, written);
  return static_cast<int64_t>(count);
}

struct Wavefronts {
  int64_t all, extra;
};

Wavefronts wavefronts_of(const Group& group) {
  Wavefronts result = {0, 0};
  unsigned widest = 0;
  for (unsigned i = 0; i < group.count; ++i) widest = std::max<unsigned>(widest, group.bytes[i]);
  const unsigned together = widest <= 4 ? 32 : widest <= 8 ? 16 : 8;
  for (unsigned from = 0; from < group.count; from += together) {
    uint64_t word[4 * kLanes];
    size_t count = 0;
    for (unsigned i = from; i < std::min(group.count, from + together); ++i) {
      for (uint64_t w = group.at[i] / 4; w <= (group.at[i] + group.bytes[i] - 1) / 4; ++w)
        word[count++] = w;
    }
    std::sort(word, word + count);
    count = static_cast<size_t>(std::unique(word, word + count) - word);
    int64_t bank[32] = {}, most = 0;
    for (size_t i = 0; i < count; ++i) most = std::max(most, ++bank[word[i] % 32]);
    result.all += most;
    result.extra += most - 1;
  }
  return result;
}

struct Meeting {
  int64_t addresses, most;
};

Meeting meeting_of(const Group& group) {
  uint64_t at[kLanes];
  std::copy(group.at, group.at + group.count, at);
  std::sort(at, at + group.count);
  Meeting result = {0, 0};
  for (unsigned i = 0; i < group.count;) {
    unsigned j = i;
    while (j < group.count && at[j] == at[i]) ++j;
    ++result.addresses;
    result.most = std::max<int64_t>(result.most, j - i);
    i = j;
  }
  return result;
}

// One access of a warp.
void count(const void* code, Kind kind, const Group& group) {
  CountedPlace& place = places[{launch->kernel, kind, code}];
  ++place.warps;
  place.lanes += group.count;
  int64_t bytes = 0;
  for (unsigned i = 0; i < group.count; ++i) bytes += group.bytes[i];
  if (kind == kRead || kind == kWrite) {
    const int64_t sectors = sectors_of(group, kind == kRead, kind == kWrite);
    (kind == kRead ? launch->reads : launch->writes) += 1;
    (kind == kRead ? launch->read_bytes : launch->write_bytes) += bytes;
    (kind == kRead ? launch->read_sectors : launch->write_sectors) += sectors;
    place.sectors += sectors;
  } else if (kind == kSharedRead || kind == kSharedWrite) {
    const Wavefronts found = wavefronts_of(group);
    ++launch->shared;
    launch->wavefronts += found.all;
    launch->conflicts += found.extra;
    place.wavefronts += found.all;
    place.conflicts += found.extra;
  } else {
    const Meeting met = meeting_of(group);
    const bool shared = kind == kSharedAtomic;
    (shared ? launch->shared_atomics : launch->atomics) += group.count;
    (shared ? launch->shared_atomic_warps : launch->atomic_warps) += 1;
    (shared ? launch->shared_atomic_addresses : launch->atomic_addresses) += met.addresses;
    int64_t& most = shared ? launch->shared_atomic_most : launch->atomic_most;
    most = std::max(most, met.most);
    place.addresses += met.addresses;
    place.most = std::max(place.most, met.most);
    if (shared) return;
    const int64_t sectors = sectors_of(group, false, false);
    launch->atomic_sectors += sectors;
    place.sectors += sectors;
  }
}

// Brings together the logs of a warp's lanes.
void converge(Lane** warp, unsigned size) {
  size_t most = 0;
  for (unsigned l = 0; l < size; ++l) most = std::max(most, warp[l]->log.size());
  if (most == 0) return;
  // While all lanes do the same, the i-th records belong together.
  size_t same = 0;
  for (bool all = true; all; same += all) {
    for (unsigned l = 0; l < size && all; ++l) {
      all = same < warp[l]->log.size() && warp[l]->log[same].code == warp[0]->log[same].code &&
            warp[l]->log[same].kind == warp[0]->log[same].kind;
    }
  }
  for (size_t i = 0; i < same; ++i) {
    Group group;
    for (unsigned l = 0; l < size; ++l) {
      group.at[group.count] = warp[l]->log[i].at;
      group.bytes[group.count++] = warp[l]->log[i].bytes;
    }
    count(warp[0]->log[i].code, warp[0]->log[i].kind, group);
  }
  if (same < most) {
    std::map<std::pair<const void*, int>, size_t> ids;
    std::vector<std::vector<Group>> groups;
    std::vector<size_t> times;
    for (unsigned l = 0; l < size; ++l) {
      times.assign(ids.size(), 0);
      const void* code = nullptr;
      int kind = -1;
      size_t id = 0;
      for (size_t i = same; i < warp[l]->log.size(); ++i) {
        const Record& record = warp[l]->log[i];
        if (record.code != code || record.kind != kind) {
          code = record.code, kind = record.kind;
          id = ids.emplace(std::make_pair(code, kind), ids.size()).first->second;
          if (id == groups.size()) groups.emplace_back(), times.push_back(0);
        }
        if (times[id] == groups[id].size()) groups[id].emplace_back();
        Group& group = groups[id][times[id]++];
        group.at[group.count] = record.at;
        group.bytes[group.count++] = record.bytes;
      }
    }
    for (const auto& [key, id] : ids) {
      for (const Group& group : groups[id]) count(key.first, static_cast<Kind>(key.second), group);
    }
  }
  for (unsigned l = 0; l < size; ++l) warp[l]->log.clear();
}

// The lanes of the thread's warp that have come to where they wait, and are of the mask.
void meet(unsigned thread, unsigned mask) {
  Lane* warp[kLanes];
  unsigned size = 0;
  const size_t first = thread / kLanes * kLanes;
  for (size_t i = first; i < std::min<size_t>(first + kLanes, lanes.size()); ++i) {
    if ((mask >> (i - first) & 1) != 0 && lanes[i].here) warp[size++] = &lanes[i];
  }
  converge(warp, size);
}

bool in_range(uint64_t at, uint64_t begin, uint64_t bytes) { return at - begin < bytes; }

void record(const void* code, uint64_t at, uint64_t bytes, Kind kind) {
  std::vector<Record>& log = current->log;
  if (!log.empty()) {
    Record& last = log.back();
    const bool shared = kind == kSharedRead || kind == kSharedWrite;
    const uint64_t span = last.bytes + bytes;
    const uint64_t limit = bytes == 1 ? 4 : bytes == 4 && !shared ? 16 : 0;
    const uint64_t aligned = span <= 2 ? 2 : span <= 4 ? 4 : span <= 8 ? 8 : 16;
    if (last.kind == kind && last.piece == bytes && last.at + last.bytes == at && span <= limit &&
        last.at % aligned == 0 && last.last_code != code && kind < kAtomic) {
      last.bytes = static_cast<uint8_t>(span);
      last.last_code = code;
      return;
    }
  }
  log.push_back({code, at, code, static_cast<uint8_t>(bytes), static_cast<uint8_t>(bytes), kind});
}

void access(const void* code, const void* where, uint64_t bytes, bool written) {
  if (current == nullptr || in_atomic || bytes == 0) return;
  uint64_t at = reinterpret_cast<uint64_t>(where);
  Kind kind = written ? kWrite : kRead;
  if (in_range(at, shared_begin, shared_bytes)) {
    kind = written ? kSharedWrite : kSharedRead;
  } else if (in_range(at, current->stack_end - kStackBytes, kStackBytes + 512) ||
             in_range(at, reinterpret_cast<uint64_t>(*arguments_at), *arguments_bytes) ||
             in_range(at, threads_begin, threads_bytes) ||
             in_range(at, reinterpret_cast<uint64_t>(__ehdr_start),
                      static_cast<uint64_t>(_end - __ehdr_start))) {
    return;
  }
  for (const bool split = bytes > 16; split && bytes != 0;) {
    const uint64_t piece = std::min(bytes, 8 - at % 8);
    record(code, at, piece, kind);
    at += piece;
    bytes -= piece;
  }
  if (bytes != 0) record(code, at, bytes, kind);
}

}  // namespace

namespace cuemu::hooks {

void count_launch(const char* kernel, int64_t blocks, int64_t threads, void* stream,
                  const void* const* at, const size_t* bytes) {
  arguments_at = at;
  arguments_bytes = bytes;
  const auto known = std::find(names.begin(), names.end(), kernel);
  launches.emplace_back();
  launch = &launches.back();
  launch->kernel = known - names.begin();
  if (known == names.end()) names.emplace_back(kernel);
  launch->blocks = blocks;
  launch->threads = threads;
  launch->stream = static_cast<int64_t>(reinterpret_cast<intptr_t>(stream));
  ++launch_number;
  block_number = 0;
}

void count_launch_end() {
  launch = nullptr;
  current = nullptr;
}

void count_block(const char* threads, size_t bytes, const char* shared, size_t size,
                 unsigned count) {
  threads_begin = reinterpret_cast<uint64_t>(threads);
  threads_bytes = bytes;
  shared_begin = reinterpret_cast<uint64_t>(shared);
  shared_bytes = size;
  ++block_number;
  lanes.resize(count);
  for (Lane& lane : lanes) lane.here = false, lane.barriers = 0, lane.log.clear();
}

void count_block_end() {
  current = nullptr;
  int64_t most = 0;
  for (size_t i = 0; i < lanes.size(); i += kLanes) meet(static_cast<unsigned>(i), UINT32_MAX);
  for (const Lane& lane : lanes) most = std::max(most, lane.barriers);
  launch->barriers += most;
  launch->barriers_most = std::max(launch->barriers_most, most);
}

void count_thread(unsigned thread, const void* frame) {
  lanes[thread].stack_end = reinterpret_cast<uint64_t>(frame);
  current = &lanes[thread];
}

void count_thread_end(unsigned thread) { lanes[thread].here = true; }

void count_current(unsigned thread) { current = &lanes[thread]; }

void count_no_thread() { current = nullptr; }

void count_arrive(unsigned thread, bool barrier) {
  lanes[thread].here = true;
  if (barrier) {
    ++lanes[thread].barriers;
  } else {
    ++launch->warp_ops;
  }
}

// The first lane to go on finds the others of its mask where it left them.
void count_leave(unsigned thread, bool barrier, unsigned mask) {
  if (!lanes[thread].here) return;
  if (barrier) mask = UINT32_MAX;
  meet(thread, mask);
  const size_t first = thread / kLanes * kLanes;
  for (size_t i = first; i < std::min<size_t>(first + kLanes, lanes.size()); ++i) {
    if ((mask >> (i - first) & 1) != 0) lanes[i].here = false;
  }
}

void count_atomic(const void* at, size_t bytes, const void* code) {
  if (current == nullptr) return;
  const uint64_t where = reinterpret_cast<uint64_t>(at);
  const bool shared = in_range(where, shared_begin, shared_bytes);
  record(code, where, bytes, shared ? kSharedAtomic : kAtomic);
  in_atomic = true;
}

void count_atomic_end() { in_atomic = false; }

}  // namespace cuemu::hooks

EXPORT void count_reset() {
  names.clear();
  launches.clear();
  places.clear();
}

EXPORT int64_t count_launches(CountedLaunch* to) {
  if (to != nullptr) std::copy(launches.begin(), launches.end(), to);
  return static_cast<int64_t>(launches.size());
}

EXPORT int64_t count_places(CountedPlace* to) {
  for (auto each = places.begin(); to != nullptr && each != places.end(); ++each, ++to) {
    *to = each->second;
    to->kernel = std::get<0>(each->first);
    to->kind = std::get<1>(each->first);
    to->code = static_cast<const char*>(std::get<2>(each->first)) - __ehdr_start;
  }
  return static_cast<int64_t>(places.size());
}

EXPORT const char* count_name(int64_t kernel) {
  return kernel < static_cast<int64_t>(names.size()) ? names[kernel].c_str() : nullptr;
}

// GCC's -fsanitize=thread calls these; the address of the access is that of the return.
#define COUNT_ACCESS(bytes)                                \
  EXPORT void __tsan_read##bytes(const void* at) {         \
    access(__builtin_return_address(0), at, bytes, false); \
  }                                                        \
  EXPORT void __tsan_write##bytes(const void* at) {        \
    access(__builtin_return_address(0), at, bytes, true);  \
  }
#define COUNT_UNALIGNED(bytes)                                \
  EXPORT void __tsan_unaligned_read##bytes(const void* at) {  \
    access(__builtin_return_address(0), at, bytes, false);    \
  }                                                           \
  EXPORT void __tsan_unaligned_write##bytes(const void* at) { \
    access(__builtin_return_address(0), at, bytes, true);     \
  }
COUNT_ACCESS(1)
COUNT_ACCESS(2)
COUNT_ACCESS(4)
COUNT_ACCESS(8)
COUNT_ACCESS(16)
COUNT_UNALIGNED(2)
COUNT_UNALIGNED(4)
COUNT_UNALIGNED(8)
COUNT_UNALIGNED(16)
EXPORT void __tsan_read_range(const void* at, size_t bytes) {
  access(__builtin_return_address(0), at, bytes, false);
}
EXPORT void __tsan_write_range(const void* at, size_t bytes) {
  access(__builtin_return_address(0), at, bytes, true);
}
EXPORT void __tsan_vptr_update(void**, void*) {}
EXPORT void __tsan_vptr_read(void**) {}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit(void*) {}
EXPORT void __tsan_init() {}

// Copies that GCC makes calls of, uninstrumented: build.py renames those of the kernels.
EXPORT void* count_memcpy(void* to, const void* from, size_t bytes) {
  access(__builtin_return_address(0), from, bytes, false);
  access(__builtin_return_address(0), to, bytes, true);
  return std::memcpy(to, from, bytes);
}
EXPORT void* count_memset(void* to, int byte, size_t bytes) {
  access(__builtin_return_address(0), to, bytes, true);
  return std::memset(to, byte, bytes);
}

// What launchers and adapters allocate with new, likewise: as aligned as a GPU's memory is, else
// counts would depend on malloc.
EXPORT void* count_new(size_t bytes) {
  void* at = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (at == nullptr) std::abort();
  return at;
}
EXPORT void count_delete(void* at) { std::free(at); }
EXPORT void count_delete_sized(void* at, size_t) { std::free(at); }
