// The launcher of select: one tensor or a whole model's, in the same few launches.
#pragma once

#include "launch.h"

namespace gcext {

// One select of csrc/select/select.h. In its in-place form source.memory is source.out, and nothing
// is written where tensor is not finite; a plain top-k has neither. Otherwise, where the status is
// not kSelectOk, out and next become copies of memory and source.sent: a caller who swaps the two
// has lost nothing.
struct SelectItem {
  Source source;
  int64_t n, k;   // 0 <= k <= n; k = 0 asks for the sum alone
  void* index;    // capacity k, int64 if `wide`, else int32
  float* value;   // capacity k
  int64_t* info;  // kInfoSize
  int64_t* next;  // what is sent of out, which then is the sum; nullptr: out is the new memory
  bool in_place;  // out is also the memory
  bool ternary;
  bool wide;
};

// How the work is cut. Results do not depend on it; only tests vary it.
struct SelectSchedule {
  // Of one item. Two waves of the largest GPU; each block owns a contiguous range of elements.
  int64_t max_blocks = 2048;
  // Up to here an item is one block's work: at 32 elements a thread the passes of one block cost as
  // much as the launches that they save.
  int64_t tiny = int64_t{1} << 15;
  // Of all items, in what follows the stream: as many as run at once, or a few more.
  int64_t finish_blocks = 1024;
  bool distrust = false;  // as if every sample had given a bound above all keys
};

// Bytes, to be 16-byte aligned and uninitialised: at most n words for an item above `tiny` and
// 22 KiB beyond, none for the others.
int64_t select_scratch_bytes(const SelectItem* items, int64_t count, const SelectSchedule& how);

// `items` is host memory and may go once the call is back. One launch for every 42 tiny items; of
// the others one for every 35, and one for all of them, two if some are in place; then one for all
// medium items and five for all large ones.
cudaError_t launch_select(const SelectItem* items, int64_t count, void* scratch,
                          const SelectSchedule& how, cudaStream_t stream);

// to = memory less what was sent of it, n elements.
cudaError_t launch_select_rest(const float* memory, const int64_t* sent, int64_t n, float* to,
                               cudaStream_t stream);

}  // namespace gcext
