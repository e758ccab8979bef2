// quantize under the emulator.
#include "../../cuda/quantize.cu"

#include "emu.h"

namespace {

gcext::Source source_of(const float* tensor, const float* memory, float* out, float decay) {
  return {tensor, out != nullptr && memory == nullptr ? out : memory, out, 1.0f, decay};
}

}  // namespace

EXPORT int64_t emu_sign_scratch_bytes() { return gcext::sign_scratch_bytes(); }
EXPORT int64_t emu_levels_scratch_bytes(int64_t n, int64_t bucket) {
  return gcext::levels_scratch_bytes(n, bucket);
}

EXPORT void emu_sign(const float* tensor, const float* memory, float* out, float decay, int64_t n,
                     uint8_t* bits, int64_t* info, const int64_t* sent, int64_t* next,
                     void* scratch, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::Source source = source_of(tensor, memory, out, decay);
  source.sent = sent;
  gcext::launch_sign({source, n, bits, info, next, scratch, max_blocks}, nullptr);
}

EXPORT void emu_level_values(const float* norms, int64_t buckets, int64_t bucket, const void* at,
                             int wide, const int16_t* level, int64_t n, int32_t steps, float* value,
                             int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  gcext::launch_level_values({norms, buckets, bucket, at, wide != 0, level, n, steps, value},
                             max_blocks, nullptr);
}

EXPORT void emu_levels(const float* tensor, const float* memory, float* out, float decay, int64_t n,
                       int64_t steps, int64_t bucket, int largest, double clip, int fit,
                       int64_t seed, float* norms, void* at, int wide, int16_t* level,
                       int64_t* info, void* scratch, int64_t max_blocks) {
  const gcext::KernelFpEnv env;
  const gcext::LevelRule rule{gcext::mixed(static_cast<uint64_t>(seed)),
                              static_cast<int32_t>(steps)};
  gcext::launch_levels({source_of(tensor, memory, out, decay),
                        n,
                        bucket,
                        {largest != 0, clip},
                        fit != 0,
                        rule,
                        norms,
                        at,
                        wide != 0,
                        level,
                        info,
                        scratch,
                        max_blocks},
                       nullptr);
}
