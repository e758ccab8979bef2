#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gcext {
namespace {

#if defined(__x86_64__)
// By their bits: clang 14's __builtin_cpu_supports does not know the names.
bool has_bit(unsigned leaf, int bit) {
  unsigned a, b, c = 0, d;
  return __get_cpuid(leaf, &a, &b, &c, &d) != 0 && (c >> bit & 1) != 0;
}
bool has_lzcnt() { return has_bit(0x80000001, 5); }
bool has_f16c() { return has_bit(1, 29); }
#endif

bool processor_has(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return true;
#if defined(__x86_64__)
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2") && has_lzcnt() && has_f16c() &&
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

bool usable(Isa isa) {
#define GCEXT_IS_BUILT(set, _) isa == Isa::set ||
  const bool built = GCEXT_EACH_ISA(GCEXT_IS_BUILT, 0) false;
#undef GCEXT_IS_BUILT
  return built && processor_has(isa);
}

constexpr Isa kBestFirst[] = {Isa::avx512, Isa::avx2, Isa::neon, Isa::baseline};

std::string available() {
  std::string names;
  for (Isa isa : kBestFirst) {
    if (usable(isa)) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  return names;
}

Isa choose() {
  const char* forced = std::getenv("GCEXT_ISA");
  for (Isa isa : kBestFirst) {
    if (forced == nullptr || *forced == '\0') {
      if (usable(isa)) return isa;
    } else if (std::string(forced) == isa_name(isa)) {
      if (usable(isa)) return isa;
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
  constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "neon"};  // as in Isa
  return kNames[static_cast<int>(isa)];
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

namespace {

// Chosen when the library is loaded, so that a later change of the environment changes nothing. A
// wrong GCEXT_ISA must not end the process here: the first call of isa() raises.
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
