// The launchers of polar: the coder of csrc/polar/polar.h, by a list or at random on the CPU alone.
#pragma once

#include "../csrc/polar/polar.h"
#include "launch.h"

namespace gcext {

struct PolarEncodeLaunch {
  const float* value;     // numel of them, or null
  const uint8_t* packed;  // then 8 symbols each
  const uint8_t* frozen;  // 2^levels
  PolarGroups groups;
  int levels;
  int64_t kept;  // zeros in frozen; where it is not, no message is written
  double weight;
  int correction;
  uint8_t* message;  // 8-byte aligned
  uint8_t* symbols;  // the codewords, 8-byte aligned; null: not asked for
  int64_t* bad;      // the first index of a value that is not finite, or -1
  void* scratch;     // polar_scratch_bytes(), 8-byte aligned, uninitialised
  int64_t blocks;    // polar_blocks() or fewer; the result does not depend on it
};

struct PolarDecodeLaunch {
  const uint8_t* message;
  int64_t bytes;  // of the message; where they are not those of frozen, no symbols are written
  const uint8_t* frozen;
  PolarGroups groups;
  uint8_t* packed;  // 8-byte aligned
  void* scratch;
  int64_t blocks;
};

// Scratch of one block: LLRs of 2*N rows, N words of message, N of codeword.
GCEXT_HD inline int64_t polar_block_bytes(int64_t block) { return (2 * kPolarLanes + 16) * block; }

// A few blocks for each multiprocessor, as far as 256 MiB of scratch allow.
int64_t polar_blocks(const PolarGroups& groups);
int64_t polar_scratch_bytes(const PolarGroups& groups, int64_t blocks);

cudaError_t launch_polar_encode(const PolarEncodeLaunch& args, cudaStream_t stream);
cudaError_t launch_polar_decode(const PolarDecodeLaunch& args, cudaStream_t stream);
cudaError_t launch_polar_pack(const uint8_t* symbol, int64_t n, uint8_t* packed,
                              cudaStream_t stream);
cudaError_t launch_polar_unpack(const uint8_t* packed, int64_t n, uint8_t* symbol,
                                cudaStream_t stream);

}  // namespace gcext
