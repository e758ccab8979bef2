// select on CUDA: the sequence of launches. Steps as numbered in select.cuh.
#include <algorithm>
#include <vector>

#include "select_open.cuh"
#include "select_stream.cuh"
#include "select_tiny.cuh"

namespace gcext {
namespace {

static_assert(kSelectTile == 4 * kWideThreads, "the check reads a tile a step");
static_assert(sizeof(TaskChunk) + 128 <= 4096 && sizeof(ItemChunk) <= 4096, "kernel arguments");

bool is_tiny(const SelectItem& item, const SelectSchedule& how) {
  return item.n <= how.tiny || item.n == 0;
}

// Where things are in scratch: the works, the first block of each, the ticket, the pools.
int64_t round_up(int64_t bytes) { return ceil_div(bytes, 16) * 16; }

int64_t head_bytes(int64_t works) {
  return round_up(works * static_cast<int64_t>(sizeof(SelectWork))) + round_up(works * 8 + 8);
}

int64_t pool_bytes(const SelectPlan& plan) {
  const int64_t a_block = sizeof(BlockCounts) + kSlabs * sizeof(uint32_t);
  return round_up(plan.pool_capacity() * static_cast<int64_t>(sizeof(Candidate)) +
                  plan.blocks * a_block);
}

cudaError_t launch_tiny(const std::vector<SelectItem>& items, cudaStream_t stream) {
  const int64_t count = static_cast<int64_t>(items.size());
  for (int64_t at = 0; at < count; at += kItemChunk) {
    const int64_t here = count - at < kItemChunk ? count - at : kItemChunk;
    ItemChunk chunk = {};
    for (int64_t i = 0; i < here; ++i) chunk.item[i] = items[at + i];
    GCEXT_LAUNCH(select_tiny_kernel, here, kWideThreads, stream, chunk);
  }
  return cudaSuccess;
}

__global__ void __launch_bounds__(kSelectThreads)
    select_rest_kernel(const float* memory, const int64_t* sent, int64_t n, float* to) {
  const Held held = held_of({nullptr, nullptr, nullptr, 1.0f, 1.0f, sent});
  for (int64_t i = grid_first(); i < n; i += grid_stride()) to[i] = held.rest(memory[i], i);
}

}  // namespace

int64_t select_scratch_bytes(const SelectItem* items, int64_t count, const SelectSchedule& how) {
  int64_t works = 0, pools = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (is_tiny(items[i], how)) continue;
    ++works;
    pools += pool_bytes(plan_of(items[i].n, items[i].k, how));
  }
  return works == 0 ? 0 : head_bytes(works) + pools;
}

cudaError_t launch_select(const SelectItem* items, int64_t count, void* scratch,
                          const SelectSchedule& how, cudaStream_t stream) {
  std::vector<SelectItem> tiny;
  std::vector<SelectTask> tasks;
  for (int64_t i = 0; i < count; ++i) {
    if (is_tiny(items[i], how)) {
      tiny.push_back(items[i]);
    } else {
      tasks.push_back({items[i], 0, 0});
    }
  }
  if (const cudaError_t error = launch_tiny(tiny, stream); error != cudaSuccess) return error;
  const int64_t works = static_cast<int64_t>(tasks.size());
  if (works == 0) return cudaSuccess;
  char* const base = static_cast<char*>(scratch);
  SelectGrid grid = {static_cast<SelectWork*>(scratch), nullptr, nullptr, works, 0};
  grid.first =
      reinterpret_cast<int64_t*>(base + round_up(works * static_cast<int64_t>(sizeof(SelectWork))));
  grid.ticket = reinterpret_cast<uint32_t*>(grid.first + works);
  int64_t offset = head_bytes(works), most = 0;
  bool in_place = false;
  for (SelectTask& task : tasks) {
    const SelectPlan plan = plan_of(task.item.n, task.item.k, how);
    task.first_block = grid.blocks;
    task.offset = offset;
    grid.blocks += plan.blocks;
    offset += pool_bytes(plan);
    in_place = in_place || task.item.in_place;
    most = std::max(most, task.item.k);
  }
  for (int64_t at = 0; at < works; at += kTaskChunk) {
    const int64_t here = works - at < kTaskChunk ? works - at : kTaskChunk;
    TaskChunk chunk = {};
    for (int64_t i = 0; i < here; ++i) chunk.task[i] = tasks[at + i];
    GCEXT_LAUNCH(select_open_kernel, here, kWideThreads, stream, chunk, at, grid, base, how);
  }
  if (in_place) {
    GCEXT_LAUNCH(select_check_kernel, grid.blocks, kWideThreads, stream, grid);
  }
  GCEXT_LAUNCH(select_stream_kernel, grid.blocks, kSelectThreads, stream, grid);
  GCEXT_LAUNCH(select_finish_kernel, std::min(grid.blocks, how.finish_blocks), kSelectThreads,
               stream, grid, most == 0 ? kPhaseEmit : kPhaseRound);
  return cudaSuccess;
}

cudaError_t launch_select_rest(const float* memory, const int64_t* sent, int64_t n, float* to,
                               cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const int64_t blocks = std::min<int64_t>(ceil_div(n, kSelectThreads), 2048);
  GCEXT_LAUNCH(select_rest_kernel, blocks, kSelectThreads, stream, memory, sent, n, to);
  return cudaSuccess;
}

}  // namespace gcext
