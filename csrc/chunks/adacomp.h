// adacomp: per-bin adaptive selection (Chen et al. 2018, AdaComp, arXiv:1712.02679).
//
//   G = tensor + decay*memory       the residual and the new gradient, float32
//   H = G + tensor                  the gradient once more: what is soon to be the largest
//   bin j = elements [j*size, (j+1)*size); gmax_j = max |G| over the bin; the last may be shorter
//   chosen  = i with |H_i| >= gmax of i's bin, and G_i != 0
//   scale   = the mean of gmax over all bins         exact sum, one rounding to float32
//   value_i = sign(G_i) * scale
//   memory'_i = G_i - value_i on chosen, G_i elsewhere
//
// An element of G = 0 would be sent as 0, and is not; so of a bin of zeros nothing is. Where the
// scale rounds to 0, nothing is chosen. An H that overflows counts as larger than gmax.
//
//   index    int32, from 2^31 elements on int64: rising; value float32
//   out      memory', as select's; info is select's, with the bits of the scale for mu
//
// On the CPU index and value have as many entries as there are chosen, on CUDA a capacity for all.
#pragma once

#include "../common/exact_mean.h"
#include "../common/isa.h"
#include "../common/source.h"

namespace gcext {

GCEXT_HD inline bool adacomp_chooses(float sum, float tensor, uint32_t gmax) {
  return key_of(sum + tensor) >= gmax && key_of(sum) != 0;
}

constexpr int64_t kMostBin = int64_t{1} << 16;  // elements

// The bodies compiled per instruction set, for the n elements of one bin.
struct AdaCompTable {
  // The largest key.
  uint32_t (*largest)(const float* sum, int64_t n);
  // Marks the chosen, a bit an element and 64 a word, the last word padded with zeros; returns
  // their number.
  int64_t (*choose)(const float* sum, const float* tensor, int64_t n, uint32_t gmax,
                    uint64_t* chosen);
};

GCEXT_DECLARE_TABLE(AdaCompTable, adacomp_table)

}  // namespace gcext
