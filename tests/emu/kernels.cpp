// Every kernel that is registered: cuda/kernels.h.
#include "../../cuda/adacomp.cu"
#include "../../cuda/bin_means.cu"
#include "../../cuda/bits.cu"
#include "../../cuda/codes.cu"
#include "../../cuda/combine.cu"
#include "../../cuda/dct.cu"
#include "../../cuda/encode_codes.cu"
#include "../../cuda/gram.cu"
#include "../../cuda/hadamard.cu"
#include "../../cuda/natural.cu"
#include "../../cuda/polar.cu"
#include "../../cuda/quantize.cu"
#include "../../cuda/rice.cu"
#include "../../cuda/select.cu"
#include "../../cuda/select_chunks.cu"
#include "../../cuda/sketch.cu"
#include "emu.h"

EXPORT int64_t emu_kernels() { return static_cast<int64_t>(gcext::load_kernels()); }

EXPORT const char* emu_kernel(int64_t i) { return gcext::kernels()[i].signature; }
