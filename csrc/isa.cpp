#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace gcext {
namespace {

bool processor_has(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt") &&
             __builtin_cpu_supports("popcnt");
    case Isa::avx512:
      return processor_has(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__)
    case Isa::neon:
      return true;  // part of every AArch64 processor
#endif
    default:
      return false;
  }
}

bool built(Isa isa) {
  switch (isa) {
    GCEXT_IF_AVX2(case Isa::avx2 : return true;)
    GCEXT_IF_AVX512(case Isa::avx512 : return true;)
    GCEXT_IF_NEON(case Isa::neon : return true;)
    default:
      return isa == Isa::baseline;
  }
}

constexpr Isa kBestFirst[] = {Isa::avx512, Isa::avx2, Isa::neon, Isa::baseline};

std::string available() {
  std::string names;
  for (Isa isa : kBestFirst) {
    if (built(isa) && processor_has(isa))
      names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  return names;
}

Isa choose() {
  const char* forced = std::getenv("GCEXT_ISA");
  for (Isa isa : kBestFirst) {
    const bool usable = built(isa) && processor_has(isa);
    if (forced == nullptr || *forced == '\0') {
      if (usable) return isa;
    } else if (std::string(forced) == isa_name(isa)) {
      if (usable) return isa;
      throw std::runtime_error(std::string("GCEXT_ISA: the instruction set must be one that this "
                                           "processor and build have, got ") +
                               forced + ". Unset it, or use one of: " + available() + ".");
    }
  }
  throw std::runtime_error(std::string("GCEXT_ISA: must be baseline, avx2, avx512 or neon, got ") +
                           forced + ". Unset it, or use one of: " + available() + ".");
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::neon:
      return "neon";
    default:
      return "baseline";
  }
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

namespace {

// Chosen when the library is loaded, so that a later change of the environment changes nothing.
// What GCEXT_ISA has wrong must not end the process here: the first caller of isa() is told.
[[maybe_unused]] const bool chosen_at_load = [] {
  try {
    isa();
  } catch (const std::runtime_error&) {
    return false;
  }
  return true;
}();

}  // namespace

}  // namespace gcext
