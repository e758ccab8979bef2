// Which instruction set the kernels use. Chosen once per process: the best that the processor has,
// or the one that GCEXT_ISA names. A stem's body (`<stem>.inl`) is compiled once per instruction
// set into a namespace of that name and exports one table of function pointers; GCEXT_TABLE picks
// the table.
#pragma once

namespace gcext {

enum class Isa { baseline, avx2, avx512, neon };

// The instruction set in use. Throws std::runtime_error when GCEXT_ISA names one that is unknown,
// was not built, or that this processor lacks.
Isa isa();

const char* isa_name(Isa isa);

}  // namespace gcext

#ifdef GCEXT_HAVE_AVX2
#define GCEXT_IF_AVX2(x) x
#else
#define GCEXT_IF_AVX2(x)
#endif
#ifdef GCEXT_HAVE_AVX512
#define GCEXT_IF_AVX512(x) x
#else
#define GCEXT_IF_AVX512(x)
#endif
#ifdef GCEXT_HAVE_NEON
#define GCEXT_IF_NEON(x) x
#else
#define GCEXT_IF_NEON(x)
#endif

// Declares `extern const Type name` in every namespace that was built.
#define GCEXT_DECLARE_TABLE(Type, name)                         \
  namespace baseline {                                          \
  extern const Type name;                                       \
  }                                                             \
  GCEXT_IF_AVX2(namespace avx2 { extern const Type name; })     \
  GCEXT_IF_AVX512(namespace avx512 { extern const Type name; }) \
  GCEXT_IF_NEON(namespace neon { extern const Type name; })

// The table of the instruction set in use.
#define GCEXT_TABLE(name)                                                        \
  ([]() -> const auto& {                                                         \
    switch (::gcext::isa()) {                                                    \
      GCEXT_IF_AVX512(case ::gcext::Isa::avx512 : return ::gcext::avx512::name;) \
      GCEXT_IF_AVX2(case ::gcext::Isa::avx2 : return ::gcext::avx2::name;)       \
      GCEXT_IF_NEON(case ::gcext::Isa::neon : return ::gcext::neon::name;)       \
      default:                                                                   \
        return ::gcext::baseline::name;                                          \
    }                                                                            \
  }())
