// rice under the emulator. A row of numbers, pointers among them, is an item of tests/emu/rice.py.
#include "../../cuda/rice.cu"

#include "emu.h"

namespace {

template <class T>
T* pointer(int64_t number) {
  return reinterpret_cast<T*>(number);
}

}  // namespace

EXPORT int64_t emu_pack_bound(int64_t k, int64_t numel) { return gcext::pack_bound(k, numel); }

// Without `out` only returns how many bytes it and the scratch take.
EXPORT void emu_pack(const int64_t (*rows)[6], int64_t count, uint8_t* out, void* scratch,
                     int64_t max_blocks, int64_t* bytes) {
  std::vector<gcext::PackItem> items(count);
  for (int64_t i = 0; i < count; ++i) {
    const auto& row = rows[i];
    items[i].index = pointer<const void>(row[0]);
    items[i].value = pointer<const float>(row[1]);
    items[i].info = pointer<const int64_t>(row[2]);
    items[i].k = row[3];
    items[i].numel = row[4];
    items[i].wide = row[5] != 0;
  }
  bytes[0] = gcext::lay_out(items.data(), count);
  bytes[1] = gcext::rice_scratch_bytes(items.data(), count, max_blocks);
  if (out != nullptr) gcext::launch_pack(items.data(), count, out, scratch, max_blocks, nullptr);
}

EXPORT int64_t emu_unpack(const int64_t (*rows)[10], int64_t count, const uint32_t* message,
                          int64_t message_bytes, void* scratch, int64_t max_blocks) {
  std::vector<gcext::UnpackItem> items(count);
  for (int64_t i = 0; i < count; ++i) {
    const auto& row = rows[i];
    items[i] = {row[0],
                row[1],
                row[2],
                row[3],
                row[4],
                pointer<void>(row[5]),
                pointer<float>(row[6]),
                pointer<int64_t>(row[7]),
                static_cast<uint32_t>(row[8]),
                row[9] != 0};
  }
  if (scratch != nullptr)
    gcext::launch_unpack(items.data(), count, message, message_bytes, scratch, max_blocks, nullptr);
  return gcext::rice_scratch_bytes(items.data(), count, max_blocks);
}
