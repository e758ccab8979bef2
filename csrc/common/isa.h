// Which instruction set the kernels use. Chosen once per process: the best that the processor has,
// or the one that GCEXT_ISA names. A kernel's bodies (`<name>.inl`) are compiled once per
// instruction set into a namespace of that name and export one table of function pointers;
// GCEXT_TABLE picks the table.
#pragma once

namespace gcext {

enum class Isa { baseline, avx2, avx512, neon };

// The instruction set in use. Throws std::runtime_error when GCEXT_ISA names one that is unknown,
// was not built, or that this processor lacks.
Isa isa();

const char* isa_name(Isa isa);

}  // namespace gcext

// X(set, ...) for each instruction set that was built.
#if defined(GCEXT_HAVE_AVX512)
#define GCEXT_EACH_ISA(X, ...) X(avx512, __VA_ARGS__) X(avx2, __VA_ARGS__) X(baseline, __VA_ARGS__)
#elif defined(GCEXT_HAVE_NEON)
#define GCEXT_EACH_ISA(X, ...) X(neon, __VA_ARGS__) X(baseline, __VA_ARGS__)
#else
#define GCEXT_EACH_ISA(X, ...) X(baseline, __VA_ARGS__)
#endif

// Declares `extern const Type name` in every namespace that was built.
#define GCEXT_DECLARE_IN(set, Type, name) \
  namespace set {                         \
  extern const Type name;                 \
  }
#define GCEXT_DECLARE_TABLE(Type, name) GCEXT_EACH_ISA(GCEXT_DECLARE_IN, Type, name)

// The table of the instruction set in use.
#define GCEXT_TABLE_CASE(set, name) \
  case ::gcext::Isa::set:           \
    return ::gcext::set::name;
#define GCEXT_TABLE(name)                    \
  ([]() -> const auto& {                     \
    switch (::gcext::isa()) {                \
      GCEXT_EACH_ISA(GCEXT_TABLE_CASE, name) \
      default:                               \
        return ::gcext::baseline::name;      \
    }                                        \
  }())
