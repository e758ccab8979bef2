// select under the emulator.
#include "../../cuda/select.cu"

#include "emu.h"

namespace {

// What tests/emu/select.py passes: one array for each field of the items.
struct Items {
  const float* const* tensor;
  const float* const* memory;
  float* const* out;
  const int64_t* n;
  const int64_t* k;
  void* const* index;
  float* const* value;
  int64_t* const* info;
  const int64_t* const* sent;
  int64_t* const* next;
};

int64_t launches = 0;

void run_and_count(cudaStream_t, std::function<void()> work) {
  ++launches;
  work();
}

}  // namespace

EXPORT int64_t emu_select(const Items* given, int64_t count, float a, float b, int ternary,
                          int wide, const int64_t* how, void* scratch) {
  const gcext::KernelFpEnv env;
  std::vector<gcext::SelectItem> items(count);
  for (int64_t i = 0; i < count; ++i) {
    const bool in_place = given->out[i] != nullptr && given->memory[i] == nullptr;
    items[i] = {{given->tensor[i], in_place ? given->out[i] : given->memory[i], given->out[i], a, b,
                 given->sent[i]},
                given->n[i],
                given->k[i],
                given->index[i],
                given->value[i],
                given->info[i],
                given->next[i],
                in_place,
                ternary != 0,
                wide != 0};
  }
  const gcext::SelectSchedule schedule = {how[0], how[1], how[2], how[3] != 0};
  if (scratch == nullptr) return gcext::select_scratch_bytes(items.data(), count, schedule);
  launches = 0;
  cuemu::enqueue = run_and_count;
  return gcext::launch_select(items.data(), count, scratch, schedule, nullptr);
}

EXPORT int emu_select_rest(const float* memory, const int64_t* sent, int64_t n, float* to) {
  const gcext::KernelFpEnv env;
  return gcext::launch_select_rest(memory, sent, n, to, nullptr);
}

EXPORT int64_t emu_select_launches() { return launches; }

EXPORT int64_t emu_select_scratch_bytes(int64_t n, int64_t k) {
  gcext::SelectItem item = {};
  item.n = n;
  item.k = k;
  return gcext::select_scratch_bytes(&item, 1, {});
}

// Of the first item that was no tiny one.
EXPORT int64_t emu_select_collected(const gcext::SelectWork* work) {
  return static_cast<int64_t>(work->collected);
}
EXPORT int emu_select_all(const gcext::SelectWork* work) { return work->head.all != 0; }
