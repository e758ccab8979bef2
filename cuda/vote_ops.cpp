// The operator of csrc/vote.cpp on CUDA.
#include "../csrc/common/arguments.h"
#include "device.h"
#include "vote_launch.h"

namespace gcext {
namespace {

Tensor vote(const std::vector<Tensor>& plane, const std::vector<Tensor>& index,
            const std::vector<Tensor>& value, double scale, int64_t numel) {
  const int64_t planes = static_cast<int64_t>(plane.size());
  GCEXT_CHECK(planes <= kMostPlanes, "vote: on CUDA takes at most ", kMostPlanes,
              " planes of signs, got ", planes, ". Move the packets to the CPU.");
  GCEXT_CHECK(planes > 0 || !value.empty(), "vote: needs at least one voter, got none.");
  const Tensor& like = planes > 0 ? plane[0] : value[0];
  const std::vector<PacketView> packets = views_on_device("vote", index, value, numel, like);
  check_vote(plane, packets, scale, numel);
  std::vector<WeightedPacket> voters;
  for (const Tensor& bits : plane) {
    check_device(bits, like, "vote: plane");
    voters.push_back({{bits.const_data_ptr<uint8_t>(), nullptr, numel, false, true}, 0});
  }
  for (const PacketView& packet : packets) voters.push_back({packet, 0});
  const CurrentStream stream(like);
  Tensor out = empty(numel, ScalarType::Float, like);
  if (numel == 0) return out;
  const int64_t m = static_cast<int64_t>(voters.size());
  Tensor scratch = empty(m * static_cast<int64_t>(sizeof(WeightedPacket)), ScalarType::Byte, like);
  const VoteLaunch args{voters.data(),
                        planes,
                        m,
                        numel,
                        static_cast<float>(scale),
                        out.mutable_data_ptr<float>(),
                        static_cast<WeightedPacket*>(scratch.mutable_data_ptr()),
                        kVoteBlocks};
  check_launch("vote", launch_vote(args, stream));
  return out;
}

}  // namespace

GCEXT_KERNEL(CUDA, vote)

}  // namespace gcext
