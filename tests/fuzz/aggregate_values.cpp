// The target `aggregate`: the operators that decode packets' values, of right and wrong arguments.
#include <algorithm>

#include "arguments.h"

namespace gcext::fuzz {

void run_values(Choices* choices) {
  Random& random = choices->random;
  const auto count = [&] {
    return choices->once_in(20) ? wrong_number(&random, 5) : random.below(70);
  };
  const auto bytes_of = [&](int64_t bits) {
    std::vector<uint8_t> bytes(static_cast<size_t>(std::max<int64_t>(
        0, bits / 8 + (bits % 8 != 0) + (choices->once_in(9) ? random.within(-1, 1) : 0))));
    for (uint8_t& each : bytes) each = static_cast<uint8_t>(random.next());
    return tensor_of(bytes);
  };
  const auto floats_of = [&](int64_t n) {
    std::vector<float> all(static_cast<size_t>(
        std::clamp<int64_t>(choices->once_in(9) ? n + random.within(-1, 1) : n, 0, 20000)));
    for (float& each : all) each = random.finite(false);
    return tensor_of(all);
  };
  const int64_t n = count(), small = std::clamp<int64_t>(n, 0, 70);
  switch (choices->below(6)) {
    case 0: {
      const int64_t run = 8 * random.below(4) + random.once_in(9);
      const Optional scales = choices->once_in(2)
                                  ? Optional(floats_of(small / std::max<int64_t>(run, 1) + 1))
                                  : Optional();
      const Tensor bits = bytes_of(small);
      twice([&] { return find_operator<UnpackSigns>("unpack_signs")(bits, n, 0.5, scales, run); });
      return;
    }
    case 1: {
      const int64_t table = random.below(7) - 1, bucket = random.once_in(3) ? count() : 0;
      const int64_t width = table == 2 ? 8 : table > 2 ? 16 : random.below(10);
      const Tensor bits = bytes_of(small * width);
      const Tensor scales = floats_of((bucket > 0 ? small / bucket + 1 : 1)
                                      << (table == 0 ? std::min<int64_t>(width, 8) : 0));
      twice([&] {
        return find_operator<CodeValues>("code_values")(bits, scales, n, table, width, bucket);
      });
      return;
    }
    case 2: {
      std::vector<int16_t> power(static_cast<size_t>(small));
      for (int16_t& each : power) each = static_cast<int16_t>(random.next());
      const auto scale = static_cast<double>(random.finite(true));
      const Tensor powers = tensor_of(power);
      twice([&] { return find_operator<PowerValues>("power_values")(powers, scale); });
      return;
    }
    case 3: {
      const int64_t rows = random.below(40), cols = random.below(40), edge = random.below(70);
      const Numbers at = make_index(&random, random.below(rows * cols + 1), rows * cols);
      Numbers wrong = at;
      if (choices->once_in(3) && !at.empty())
        wrong[static_cast<size_t>(random.below(static_cast<int64_t>(at.size())))] =
            wrong_number(&random, rows * cols);
      const Tensor index = index_tensor(wrong, random.once_in(2));
      const Tensor value = floats_of(static_cast<int64_t>(at.size()));
      twice([&] { return find_operator<DctValues>("dct_values")(index, value, rows, cols, edge); });
      return;
    }
    case 4: {
      const int64_t rows = random.below(7), cols = random.below(30);
      const Tensor table = floats_of(rows * cols);
      const Optional index =
          choices->once_in(2) ? Optional(index_tensor(make_index(&random, small, small + 5), true))
                              : Optional();
      const auto seed = static_cast<int64_t>(random.next());
      twice([&] {
        return find_operator<SketchQuery>("sketch_query")(table, index, n, rows, cols, seed);
      });
      return;
    }
    default: {
      const int64_t bucket = choices->once_in(2) ? 0 : count(), steps = count();
      const Numbers at = make_index(&random, small, 4 * small);
      std::vector<int16_t> level(at.size());
      for (int16_t& each : level) each = static_cast<int16_t>(random.next());
      const Tensor norms = floats_of(bucket > 0 ? 4 * small / bucket + 1 : 1);
      const Tensor index = index_tensor(at, random.once_in(2)), levels = tensor_of(level);
      twice([&] {
        return find_operator<LevelValues>("level_values")(norms, index, levels, bucket, steps);
      });
    }
  }
}

}  // namespace gcext::fuzz
