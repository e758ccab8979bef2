// The launcher of vote.
#pragma once

#include "../csrc/vote.h"
#include "combine_launch.h"

namespace gcext {

constexpr int64_t kVoteBlocks = 528;  // all that an H200 holds at once
constexpr int kVoteLevels = 16;
constexpr int64_t kMostPlanes = (int64_t{1} << kVoteLevels) - 1;

// The vote of m voters as csrc/vote.h defines it; numel > 0. The first `planes` of them, at most
// kMostPlanes, are planes of sign bits: dense, their bits at `index`, at any address. The others
// are sparse; their indices are not validated: one out of its place is passed over. `voters` is
// host memory and may go once the call is back.
struct VoteLaunch {
  const WeightedPacket* voters;
  int64_t planes, m, numel;
  float scale;
  float* out;
  WeightedPacket* scratch;  // of m, on the device, 8-byte aligned
  int64_t max_blocks;       // the result does not depend on it
};
cudaError_t launch_vote(const VoteLaunch& args, cudaStream_t stream);

}  // namespace gcext
