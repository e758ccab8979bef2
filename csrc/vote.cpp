#include "vote.h"

#include <cstring>

#include "common/arguments.h"
#include "common/packet.h"
#include "common/pool.h"

namespace gcext {
namespace {

constexpr int64_t kTilesPerThread = 4;  // 32,768 elements are worth a thread

struct Voters {
  std::vector<const uint8_t*> planes;
  std::vector<PacketView> packets;

  int64_t size() const { return static_cast<int64_t>(planes.size() + packets.size()); }
};

// Tiles [first, last) of the result; the steps are those of vote.h.
void vote_tiles(const Voters& voters, double scale, int64_t numel, int64_t first, int64_t last,
                float* out) {
  const VoteTable& kernels = GCEXT_TABLE(vote_table);
  int64_t levels = 1;
  while (voters.size() >> levels != 0) ++levels;
  std::vector<int64_t> cursor;
  for (const PacketView& packet : voters.packets)
    cursor.push_back(first_entry(packet, first * kVoteTile));
  std::vector<VotePlane> minus(static_cast<size_t>(levels)), there(static_cast<size_t>(levels));
  VotePlane a, b;
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t begin = tile * kVoteTile, n = std::min(numel - begin, kVoteTile);
    const auto load = [&](size_t i, VotePlane* plane) {
      const size_t bytes = i < voters.planes.size() ? static_cast<size_t>(plane_bytes(n, 1)) : 0;
      if (bytes < sizeof(VotePlane)) std::memset(plane, 0, sizeof(VotePlane));
      if (bytes > 0) std::memcpy(plane, voters.planes[i] + begin / 8, bytes);
    };
    for (int64_t level = 0; level < levels; ++level) {
      std::memset(&minus[level], 0, sizeof(VotePlane));
      std::memset(&there[level], voters.planes.size() >> level & 1 ? 0xff : 0, sizeof(VotePlane));
    }
    for (size_t i = 0; i < voters.planes.size(); i += 2) {
      load(i, &a);
      load(i + 1, &b);
      kernels.add(&a, &b, levels, minus.data());
    }
    for (size_t i = 0; i < voters.packets.size(); ++i) {
      VotePlane votes{}, against{}, none{};
      cursor[i] = kernels.mark(voters.packets[i], cursor[i], begin, &votes, &against);
      kernels.add(&votes, &none, levels, there.data());
      kernels.add(&against, &none, levels, minus.data());
    }
    kernels.decide(minus.data(), there.data(), levels, &a, &b);
    kernels.spread(a, b, n, static_cast<float>(scale), out + begin);
  }
}

Tensor vote(const std::vector<Tensor>& plane, const std::vector<Tensor>& index,
            const std::vector<Tensor>& value, double scale, int64_t numel) {
  Voters voters;
  voters.packets = view_packets("vote", index, value, numel);
  check_vote(plane, voters.packets, scale, numel);
  for (const Tensor& bits : plane) voters.planes.push_back(bits.const_data_ptr<uint8_t>());
  return fill_tiles(numel, kVoteTile, kTilesPerThread,
                    [&](int64_t first, int64_t last, float* out) {
                      vote_tiles(voters, scale, numel, first, last, out);
                    });
}

}  // namespace

GCEXT_OPERATOR(CPU, vote,
               "(Tensor[] plane, Tensor[] index, Tensor[] value, float scale, int numel) -> Tensor")

}  // namespace gcext
