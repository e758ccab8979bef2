// select under the emulator.
#include "../../cuda/select.cu"

#include "emu.h"

EXPORT int64_t emu_select_scratch_bytes() { return gcext::select_scratch_bytes(); }

EXPORT void emu_select(const float* tensor, const float* memory, float* out, int64_t n, int64_t k,
                       float a, float b, int ternary, int wide, int64_t max_blocks, void* index,
                       float* value, int64_t* info, void* scratch) {
  const gcext::KernelFpEnv env;
  gcext::SelectLaunch args = {};
  args.in_place = out != nullptr && memory == nullptr;
  args.source = {tensor, args.in_place ? out : memory, out, a, b};
  args.n = n;
  args.k = k;
  args.ternary = ternary != 0;
  args.index = index;
  args.wide = wide != 0;
  args.value = value;
  args.info = info;
  args.scratch = scratch;
  args.max_blocks = max_blocks;
  gcext::launch_select(args, nullptr);
}
