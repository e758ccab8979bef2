#include "bits.h"

namespace gcext {

const BitsTable& bits() {
  static const BitsTable& table = GCEXT_TABLE(bits_table);
  return table;
}

}  // namespace gcext
