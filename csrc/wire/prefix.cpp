#include "prefix.h"

#include <cstring>
#include <numeric>
#include <string>

#include "../bits.h"
#include "fields.h"

namespace gcext::wire {
namespace {

int64_t load_size(const uint8_t* entry) {
  return entry[0] | entry[1] << 8 | static_cast<int64_t>(entry[2]) << 16;
}

}  // namespace

// A coin is a symbol, a package two neighbours of the list before. Equal weights: coins first, the
// lower symbol first. So the items taken of a list are the first few of its coins, each a bit more
// for its symbol, and the first few of its packages, each two items of the list before.
std::vector<uint8_t> word_lengths(const std::vector<int64_t>& count) {
  const size_t m = count.size();
  std::vector<size_t> order(m);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return count[a] < count[b]; });
  std::vector<std::vector<bool>> is_coin;
  std::vector<int64_t> list, packages, merged;
  for (int level = 0; level < kLongestWord; ++level) {
    packages.clear();
    for (size_t i = 0; i + 1 < list.size(); i += 2) packages.push_back(list[i] + list[i + 1]);
    merged.clear();
    std::vector<bool> coins;
    for (size_t c = 0, p = 0; c < m || p < packages.size();) {
      const bool coin = c < m && (p == packages.size() || count[order[c]] <= packages[p]);
      merged.push_back(coin ? count[order[c++]] : packages[p++]);
      coins.push_back(coin);
    }
    list.swap(merged);
    is_coin.push_back(std::move(coins));
  }
  std::vector<uint8_t> length(m);
  size_t taken = 2 * m - 2;
  for (size_t level = kLongestWord; level-- > 0;) {
    size_t coins = 0;
    for (size_t i = 0; i < taken; ++i) coins += is_coin[level][i];
    for (size_t i = 0; i < coins; ++i) ++length[order[i]];
    taken = 2 * (taken - coins);
  }
  return length;
}

std::vector<uint16_t> words_of(const std::vector<uint8_t>& length) {
  std::array<uint32_t, kLongestWord + 1> count{}, next{};
  for (const uint8_t bits : length) ++count[bits];
  count[0] = 0;
  for (size_t bits = 1; bits <= kLongestWord; ++bits)
    next[bits] = (next[bits - 1] + count[bits - 1]) << 1;
  std::vector<uint16_t> words(length.size());
  for (size_t i = 0; i < length.size(); ++i) {
    const uint32_t word = next[length[i]]++;
    uint32_t reversed = 0;
    for (int bit = 0; bit < length[i]; ++bit)
      reversed |= (word >> bit & 1) << (length[i] - 1 - bit);
    words[i] = static_cast<uint16_t>(reversed);
  }
  return words;
}

void take_prefix(Cursor* cursor, int64_t symbols, int64_t alphabet, int64_t most_bits,
                 bool may_be_none, Prefix* prefix) {
  prefix->symbols = symbols;
  prefix->alphabet = alphabet;
  const uint8_t* place = cursor->at();
  prefix->kinds = cursor->varint("symbols");
  if (prefix->kinds > std::min(symbols, alphabet) || (prefix->kinds == 0 && !may_be_none))
    cursor->fail("code", "symbols", place,
                 "must be in [" + std::string(may_be_none ? "0" : "1") + ", " +
                     std::to_string(std::min(symbols, alphabet)) + "], got " +
                     std::to_string(prefix->kinds) + ".");
  if (prefix->kinds == 0) return;
  prefix->used.tiles_name = "symbols.tiles";
  prefix->used.remainders_name = "symbols.remainders";
  prefix->used.unary_name = "symbols.unary";
  take_section(cursor, prefix->kinds, &prefix->used);
  const int64_t bits = 4 * prefix->kinds;
  prefix->lengths = cursor->take(plane_bytes(bits, 1), "lengths", prefix->kinds);
  if (!plane_padded(prefix->lengths, bits))
    cursor->fail("padding", "lengths", cursor->at() - 1, "must end with zero bits.");
  const int64_t tiles = symbols / kPrefixTile + (symbols % kPrefixTile != 0);
  if (tiles > cursor->left() / kSizeBytes) cursor->take(cursor->left() + 1, "sizes");
  prefix->sizes = cursor->take(tiles * kSizeBytes, "sizes", tiles);
  for (int64_t t = 0; t < tiles; ++t) {
    const uint8_t* entry = prefix->sizes + kSizeBytes * t;
    const int64_t size = load_size(entry), n = std::min(kPrefixTile, symbols - t * kPrefixTile);
    if (size < n || size > n * most_bits)
      cursor->fail("tile", "sizes", entry,
                   "must be in [" + std::to_string(n) + ", " + std::to_string(n * most_bits) +
                       "], got " + std::to_string(size) + ".");
    prefix->bits += size;
  }
  prefix->stream = cursor->take(plane_bytes(prefix->bits, 1), "stream", prefix->bits);
  if (!plane_padded(prefix->stream, prefix->bits))
    cursor->fail("padding", "stream", cursor->at() - 1, "must end with zero bits.");
}

PrefixReader::PrefixReader(const Prefix& prefix, const Cursor& cursor)
    : prefix_(prefix), cursor_(cursor) {
  used_.resize(static_cast<size_t>(prefix.kinds));
  SectionReader reader(prefix.used, prefix.alphabet, cursor);
  for (int32_t* next = used_.data();;) {
    const int64_t n = reader.next(next);
    if (n == 0) break;
    next += n;
  }
  length_.resize(used_.size());
  const bool single = used_.size() == 1;
  int64_t sum = 0;  // of 2^-length, in units of 2^-12
  for (size_t i = 0; i < length_.size(); ++i) {
    length_[i] = prefix.lengths[i / 2] >> (4 * (i % 2)) & 15;
    if (single ? length_[i] != 0 : length_[i] < 1 || length_[i] > kLongestWord)
      cursor.fail("code", "lengths", prefix.lengths + i / 2,
                  "must be " + std::string(single ? "0" : "in [1, 12]") + ", got " +
                      std::to_string(length_[i]) + ".");
    sum += kMaxAlphabet >> length_[i];
  }
  if (sum != kMaxAlphabet)
    cursor.fail("code", "lengths", prefix.lengths, "must be those of a complete code.");
  const int longest = *std::max_element(length_.begin(), length_.end());
  mask_ = (uint64_t{1} << longest) - 1;
  const std::vector<uint16_t> word = words_of(length_);
  for (size_t i = 0; i < word.size(); ++i) {
    const auto entry = static_cast<uint16_t>(used_[i] << 4 | length_[i]);
    for (size_t window = word[i]; window <= mask_; window += size_t{1} << length_[i])
      table_[window] = entry;
  }
}

PrefixReader::Tile PrefixReader::next() {
  const int64_t n = std::min(kPrefixTile, prefix_.symbols - tile_ * kPrefixTile);
  if (n <= 0) return {};
  const Tile tile{n, bit_, bit_ + load_size(prefix_.sizes + kSizeBytes * tile_), tile_};
  // True of every stream taken; asked again because the buffer may be one that others write to.
  if (tile.end > prefix_.bits)
    cursor_.fail("tile", "sizes", prefix_.sizes, "changed while it was read.");
  bit_ = tile.end;
  ++tile_;
  return tile;
}

void PrefixReader::fail_size(int64_t tile) const {
  const uint8_t* entry = prefix_.sizes + kSizeBytes * tile;
  cursor_.fail(
      "tile", "sizes", entry,
      "must be the bits of the tile's symbols, got " + std::to_string(load_size(entry)) + ".");
}

void PrefixReader::check_counts(const int64_t* count) const {
  std::vector<int64_t> used(used_.size());
  bool right = true;
  for (size_t i = 0; i < used.size(); ++i) {
    used[i] = count[used_[i]];
    right = right && used[i] > 0;
  }
  if (!right || (used.size() > 1 && word_lengths(used) != length_))
    cursor_.fail("code", "lengths", prefix_.lengths,
                 "must be those of the code for the symbols that occur.");
}

PrefixWriter::PrefixWriter(const std::vector<int64_t>& count, int64_t more_bits)
    : words_(count.size()) {
  std::vector<int64_t> used;
  for (size_t symbol = 0; symbol < count.size(); ++symbol) {
    if (count[symbol] == 0) continue;
    used_.push_back(static_cast<int32_t>(symbol));
    used.push_back(count[symbol]);
  }
  const std::vector<uint8_t> length =
      used.size() > 1 ? word_lengths(used) : std::vector<uint8_t>(used.size());
  const std::vector<uint16_t> word = words_of(length);
  lengths_.resize((used.size() + 1) / 2);
  int64_t bits = more_bits;
  for (size_t i = 0; i < used.size(); ++i) {
    words_[static_cast<size_t>(used_[i])] = {word[i], length[i]};
    lengths_[i / 2] = static_cast<uint8_t>(lengths_[i / 2] | length[i] << (4 * (i % 2)));
    bits += used[i] * length[i];
  }
  stream_.resize(static_cast<size_t>(plane_bytes(bits, 1)) + 8);
}

void PrefixWriter::end_tile(const BitSink& sink) {
  const int64_t size = sink.bits() - written_;
  written_ = sink.bits();
  for (int shift = 0; shift < 24; shift += 8) sizes_.push_back(static_cast<uint8_t>(size >> shift));
}

void PrefixWriter::put(Message* message) {
  message->varint(used_.size());
  if (used_.empty()) return;
  message->own(pack_section(used_.data(), static_cast<int64_t>(used_.size()), kMaxAlphabet));
  message->own(std::move(lengths_));
  message->own(std::move(sizes_));
  stream_.resize(static_cast<size_t>(plane_bytes(written_, 1)));
  message->own(std::move(stream_));
}

}  // namespace gcext::wire
