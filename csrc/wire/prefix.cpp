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
  const int64_t tiles = tiles_of(symbols);
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

PrefixReader::Tiles::Tiles(const PrefixReader& code, int64_t first, int64_t last)
    : code_(code), tile_(first), last_(last) {
  for (int64_t t = 0; t < first; ++t) bit_ += load_size(code.prefix_.sizes + kSizeBytes * t);
}

PrefixReader::Tile PrefixReader::Tiles::next() {
  if (tile_ >= last_) return {};
  const Prefix& prefix = code_.prefix_;
  const int64_t n = std::min(kPrefixTile, prefix.symbols - tile_ * kPrefixTile);
  const Tile tile{n, bit_, bit_ + load_size(prefix.sizes + kSizeBytes * tile_), tile_};
  // True of every stream taken; asked again because the buffer may be one that others write to.
  if (tile.end > prefix.bits)
    code_.cursor_.fail("tile", "sizes", prefix.sizes, "changed while it was read.");
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

PrefixWriter::PrefixWriter(const std::vector<int64_t>& count, int64_t symbols)
    : words_(count.size()), sizes_(static_cast<size_t>(kSizeBytes * tiles_of(symbols))) {
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
  for (size_t i = 0; i < used.size(); ++i) {
    words_[static_cast<size_t>(used_[i])] = {word[i], length[i]};
    lengths_[i / 2] = static_cast<uint8_t>(lengths_[i / 2] | length[i] << (4 * (i % 2)));
  }
}

int64_t PrefixWriter::word_bits(const std::vector<int64_t>& count) const {
  int64_t bits = 0;
  for (size_t symbol = 0; symbol < count.size(); ++symbol)
    bits += count[symbol] * words_[symbol].length;
  return bits;
}

void PrefixWriter::cut(const std::vector<int64_t>& bits) {
  int64_t begin = 0;
  for (const int64_t own : bits) {
    parts_.push_back({begin, own, nullptr});
    begin += own;
  }
}

BitSink PrefixWriter::open(int64_t part) {
  Part& own = parts_[static_cast<size_t>(part)];
  const int fill = static_cast<int>(own.begin & 7);
  own.bytes.reset(new uint8_t[static_cast<size_t>(plane_bytes(fill + own.bits, 1)) + 8]);
  own.bytes[0] = 0;
  return BitSink(own.bytes.get(), fill);
}

void PrefixWriter::set_size(int64_t tile, int64_t bits) {
  uint8_t* const entry = sizes_.data() + kSizeBytes * tile;
  for (int i = 0; i < kSizeBytes; ++i) entry[i] = static_cast<uint8_t>(bits >> (8 * i));
}

void PrefixWriter::put(Message* message) {
  message->varint(used_.size());
  if (used_.empty()) return;
  message->own(pack_section(used_.data(), static_cast<int64_t>(used_.size()), kMaxAlphabet));
  message->own(std::move(lengths_));
  message->own(std::move(sizes_));
  // A byte that two parts share is the later one's.
  uint8_t shared = 0;
  for (size_t p = 0; p < parts_.size(); ++p) {
    Part& part = parts_[p];
    const int64_t bits = (part.begin & 7) + part.bits;
    const bool last = p + 1 == parts_.size();
    part.bytes[0] = static_cast<uint8_t>(part.bytes[0] | shared);
    shared = part.bytes[static_cast<size_t>(bits >> 3)];
    message->own(std::move(part.bytes), last ? plane_bytes(bits, 1) : bits >> 3);
  }
}

}  // namespace gcext::wire
