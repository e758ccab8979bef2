// polar under the emulator.
#include "../../cuda/polar.cu"

#include "emu.h"

namespace {

// What a launch needs and no test reads.
struct Scratch {
  std::vector<uint64_t> words;
  int64_t blocks;
  Scratch(const gcext::PolarGroups& groups, int64_t max_blocks)
      : blocks(std::min(gcext::polar_blocks(groups), max_blocks)) {
    words.assign(gcext::polar_scratch_bytes(groups, blocks) / 8, 0xa5a5a5a5a5a5a5a5u);
  }
};

}  // namespace

EXPORT void emu_polar_encode(const float* value, const uint8_t* packed, const uint8_t* frozen,
                             int64_t numel, int levels, int64_t kept, double weight, int correction,
                             int64_t max_blocks, uint8_t* message, uint8_t* symbols, int64_t* bad) {
  const gcext::KernelFpEnv env;
  const gcext::PolarGroups groups(numel, int64_t{1} << levels);
  Scratch scratch(groups, max_blocks);
  gcext::launch_polar_encode({value, packed, frozen, groups, levels, kept, weight, correction,
                              message, symbols, bad, scratch.words.data(), scratch.blocks},
                             nullptr);
}

EXPORT void emu_polar_decode(const uint8_t* message, int64_t bytes, const uint8_t* frozen,
                             int64_t numel, int levels, int64_t max_blocks, uint8_t* packed) {
  const gcext::PolarGroups groups(numel, int64_t{1} << levels);
  Scratch scratch(groups, max_blocks);
  gcext::launch_polar_decode(
      {message, bytes, frozen, groups, packed, scratch.words.data(), scratch.blocks}, nullptr);
}

EXPORT void emu_polar_pack(const uint8_t* symbol, int64_t n, uint8_t* packed) {
  gcext::launch_polar_pack(symbol, n, packed, nullptr);
}

EXPORT void emu_polar_unpack(const uint8_t* packed, int64_t n, uint8_t* symbol) {
  gcext::launch_polar_unpack(packed, n, symbol, nullptr);
}
