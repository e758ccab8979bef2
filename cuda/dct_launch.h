// The launchers of dct.
#pragma once

#include "../csrc/common/packet_view.h"
#include "../csrc/dct.h"
#include "launch.h"

namespace gcext {

constexpr int64_t kDctBlocks = 1024;

// The choice of csrc/dct.h; the matrix has elements. Capacity for k pairs a block of the matrix:
// how many there are is info[kInfoCount]. Where info has a status there are none, and source.out is
// a copy of source.memory (in place: untouched), so a caller who swaps the two has lost nothing.
struct DctSelectLaunch {
  Source source;  // a = 1
  int64_t n;      // elements of the matrix
  DctGrid grid;
  int64_t k;  // of a block; at most grid.largest()
  bool ternary;
  void* index;  // int64 if `wide`, else int32
  bool wide;
  float* value;
  int64_t* info;
  void* scratch;       // dct_select_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;  // at most kDctBlocks; the result does not depend on it
};
int64_t dct_select_scratch_bytes(const DctGrid& grid, int64_t k);
cudaError_t launch_dct_select(const DctSelectLaunch& args, cudaStream_t stream);

// The elements that have these coefficients, and no others. Indices that do not rise strictly below
// the number of elements are passed over, and some in order with them.
struct DctValuesLaunch {
  DctGrid grid;  // of a matrix that has elements
  PacketView packet;
  float* out;
  void* scratch;  // dct_values_scratch_bytes(), 8-byte aligned
  int64_t max_blocks;
};
int64_t dct_values_scratch_bytes();
cudaError_t launch_dct_values(const DctValuesLaunch& args, cudaStream_t stream);

}  // namespace gcext
