#include "bits.h"

#include "common/arguments.h"
#include "common/pool.h"

namespace gcext {
namespace {

constexpr int64_t kTile = 1 << 16;

Tensor unpack_signs(const Tensor& bits, int64_t n, double scale,
                    const std::optional<Tensor>& scales, int64_t run) {
  check_signs(bits, n, scales, run);
  const KernelFpEnv env;  // a scale may be denormal
  const float one = static_cast<float>(scale);
  const float* many = scales.has_value() ? scales->const_data_ptr<float>() : nullptr;
  const uint8_t* plane = bits.const_data_ptr<uint8_t>();
  const int64_t tile = many == nullptr ? kTile : std::max<int64_t>(run, 1);
  return fill_tiles(
      n, tile, std::max<int64_t>(kTile / tile, 1), [&](int64_t first, int64_t last, float* value) {
        for (int64_t t = first; t < last; ++t)
          gcext::bits().unpack_signs(plane + t * tile / 8, std::min(tile, n - t * tile),
                                     many == nullptr ? one : many[t], value + t * tile);
      });
}

}  // namespace

GCEXT_OPERATOR(CPU, unpack_signs,
               "(Tensor bits, int n, float scale, Tensor? scales, int run) -> Tensor")

}  // namespace gcext
