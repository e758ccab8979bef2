// The targets under libFuzzer, with the same mutations. GCEXT_FUZZ_TARGET names the target;
// GCEXT_FUZZ_CHECKSUM=left leaves checksums as they are.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "make.h"
#include "mutate.h"
#include "targets.h"

namespace gcext::fuzz {
namespace {

const Target& target() {
  static const Target* const chosen = [] {
    const char* name = std::getenv("GCEXT_FUZZ_TARGET");
    for (const Target& each : kTargets)
      if (name != nullptr && std::strcmp(each.name, name) == 0) return &each;
    std::fprintf(stderr, "fuzz: GCEXT_FUZZ_TARGET must name a target\n");
    std::exit(2);
  }();
  return *chosen;
}

Checksum checksum() {
  const char* mode = std::getenv("GCEXT_FUZZ_CHECKSUM");
  return mode != nullptr && std::strcmp(mode, "left") == 0 ? Checksum::left : Checksum::repaired;
}

}  // namespace

void broken(const char* what) {
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

}  // namespace gcext::fuzz

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gcext::fuzz;
  Bytes input(data, data + size);
  if (target().of_messages && checksum() == Checksum::repaired) seal(&input);
  target().run(input);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  using namespace gcext::fuzz;
  Random random(seed);
  if (!target().of_messages || random.once_in(8)) return LLVMFuzzerMutate(data, size, max_size);
  Bytes message(data, data + size);
  if (size < 13 || random.once_in(10)) message = make_message(&random);
  const Bytes other = make_message(&random);
  mutate(&random, &message, other, checksum());
  if (message.size() > max_size) message.resize(max_size);
  if (checksum() == Checksum::repaired) seal(&message);
  std::copy(message.begin(), message.end(), data);
  return message.size();
}
