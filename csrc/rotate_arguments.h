// Checks of rotate's arguments that the CPU and CUDA operators share.
#pragma once

#include "common/packet.h"
#include "rotate.h"

namespace gcext {

inline RotateChunks rotate_chunks(int64_t n, int64_t size, int64_t least) {
  check_power_of_two("rotate: size", size, kMinRotateLevel, kMaxRotateLevel);
  check_power_of_two("rotate: least", least, kMinRotateLevel, kMaxRotateLevel);
  GCEXT_CHECK(n >= 0 && least <= size, "rotate: least must be at most size, got ", least, " for ",
              size, ".");
  return {n, size, least};
}

inline void check_rotate_symbols(const Tensor& symbols, const RotateChunks& chunks) {
  check_dense(symbols, ScalarType::Byte, "rotate: symbols");
  GCEXT_CHECK(symbols.numel() == chunks.symbols() / 8,
              "rotate: symbols must have a bit for each of ", chunks.symbols(), ", got ",
              symbols.numel(), " bytes.");
}

// What rotate_back and rotate_fit take.
inline RotateChunks rotate_back_args(const Tensor& symbols, const Tensor& scale, int64_t numel,
                                     int64_t size, int64_t least) {
  const RotateChunks chunks = rotate_chunks(numel, size, least);
  check_rotate_symbols(symbols, chunks);
  check_dense(scale, ScalarType::Float, "rotate: scale");
  GCEXT_CHECK(scale.numel() == chunks.count, "rotate: scale must have one for each of ",
              chunks.count, " chunks, got ", scale.numel(), ".");
  return chunks;
}

// What rotate_scale takes; its chunks have no padding.
inline RotateChunks rotate_scale_args(const Tensor& rotated, const Tensor& symbols,
                                      const Tensor& norm, const Tensor& bad, const Tensor& info,
                                      int64_t size) {
  check_dense(rotated, ScalarType::Float, "rotate_scale: rotated");
  const RotateChunks chunks = rotate_chunks(rotated.numel(), size, int64_t{1} << kMinRotateLevel);
  GCEXT_CHECK(chunks.symbols() == rotated.numel(),
              "rotate_scale: rotated must be what rotate gave in chunks of ", size, ", got ",
              rotated.numel(), " values.");
  check_rotate_symbols(symbols, chunks);
  check_dense(norm, ScalarType::Double, "rotate_scale: norm");
  GCEXT_CHECK(norm.numel() == chunks.count, "rotate_scale: norm must have one for each of ",
              chunks.count, " chunks, got ", norm.numel(), ".");
  check_dense(bad, ScalarType::Long, "rotate_scale: bad");
  check_dense(info, ScalarType::Long, "rotate_scale: info");
  GCEXT_CHECK(bad.numel() == 1 && info.numel() == kInfoSize,
              "rotate_scale: bad and info must be an encoder's, got ", bad.numel(), " and ",
              info.numel(), " numbers.");
  return chunks;
}

}  // namespace gcext
