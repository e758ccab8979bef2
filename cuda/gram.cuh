// gram on CUDA: the kernels. csrc/gram/gram.h has the contract, gram.cu the sequence.
//
//   1. and 2. Counts of ternary pairs: gram_meet.cuh.
//   3. and 4. Sums of the other pairs: gram_sum.cuh.
//   5. Finish: scales times counts; the mirrored half.
#pragma once

#include "gram_meet.cuh"
#include "gram_sum.cuh"

namespace gcext {

__global__ void __launch_bounds__(kGramThreads)
    gram_clear_kernel(int64_t m, uint64_t* count, PairSum* sums) {
  for (int64_t i = grid_first(); i < m * m; i += grid_stride()) {
    count[i] = 0;
    sums[i] = {0.0, 0.0};
  }
}

// Step 5.
__global__ void __launch_bounds__(kGramThreads)
    gram_finish_kernel(const WeightedPacket* packets, int64_t m, const uint64_t* count,
                       const PairSum* sums, double* out) {
  for (int64_t pair = grid_first(); pair < m * m; pair += grid_stride()) {
    const int64_t i = pair / m, j = pair % m, low = i < j ? i : j, high = i < j ? j : i;
    if (is_ternary(packets[i]) && is_ternary(packets[j])) {
      const int64_t c =
          i == j ? packets[i].packet.k : static_cast<int64_t>(count[pair_at(high, low)]);
      out[pair] = (packets[i].weight * packets[j].weight) * static_cast<double>(c);
    } else {
      const PairSum sum = sums[low * m + high];
      out[pair] = sum.dot + sum.chunk;
    }
  }
}

}  // namespace gcext
