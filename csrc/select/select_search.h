// Steps 2 and 4 of select.cpp: the stream that collects candidates, and the exact k-th key.
#pragma once

#include "select_sample.h"

namespace gcext {
namespace {

constexpr int64_t kBypassBytes = 4 << 20;  // a larger output is not read back from the cache
constexpr int64_t kFewKeys = 1024;  // up to here nth_element beats three rounds of 2,048 counters

// Collects a tile's candidates; storing the sum is part of the same pass where there is an out.
// limit: of a part's candidates. bypass: where out is not the memory, store past the cache.
void stream_tile(const SelectTable& table, const Selection& selection, Pieces& pieces, Tile tile,
                 Part& part, const Bracket& bracket, int64_t limit, bool bypass) {
  uint32_t low = part.overflow ? INT32_MAX : bracket.low;
  for (size_t i = tile.first; i < tile.last; ++i) {
    Piece& piece = pieces.all[i];
    const HostSource& source = selection.tensors[piece.tensor].source;
    const bool aligned = reinterpret_cast<uintptr_t>(source.out + piece.begin) % 64 == 0;
    const bool past = bypass && source.out != nullptr && source.out != source.memory && aligned;
    piece.part = &part;
    piece.from = part.count;
    for (int64_t at = piece.begin; at < piece.end; at += kBlock) {
      low = part.reserve_block() ? low : INT32_MAX;
      part.count += table.stream(source, at, std::min(kBlock, piece.end - at), past,
                                 static_cast<uint32_t>(at - piece.begin), low,
                                 part.at(part.count, bracket.many), &part.highest);
      if (part.count > limit) {
        part.overflow = true;
        part.count = 0;
        low = INT32_MAX;  // above every key: store on, collect no more
      }
    }
    piece.until = part.count;
  }
}

// The rank-th largest key (rank from 1) of those in [low, high]: 11 bits a round, three at most.
// histogram(low, high, shift, counts) counts the keys within the bounds by (key - low) >> shift.
template <class Histogram>
uint32_t radix_select(uint32_t low, uint32_t high, int64_t rank, const Histogram& histogram) {
  constexpr int kDigit = 11;
  std::vector<int64_t> counts(size_t{1} << kDigit);
  while (low < high) {
    const int length = 32 - __builtin_clz(high - low);
    const int shift = std::max(0, length - kDigit);
    std::fill(counts.begin(), counts.end(), 0);
    histogram(low, high, shift, counts.data());
    uint32_t digit = (high - low) >> shift;
    while (digit > 0 && rank > counts[digit]) rank -= counts[digit--];
    low += digit << shift;
    high = std::min(high, low + ((uint32_t{1} << shift) - 1));
  }
  return low;
}

void count_digits(const uint32_t* keys, int64_t n, uint32_t low, uint32_t high, int shift,
                  int64_t* counts) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t above = key_of(keys[i]) - low;
    if (above <= high - low) ++counts[above >> shift];
  }
}

// The k-th key among all candidates, of which there are at least k; `highest` is the largest key.
uint32_t kth_candidate(const SelectTable& table, Parts parts, Bracket bracket, uint32_t highest,
                       int64_t k, bool parallel) {
  const auto within = [&](uint32_t low, uint32_t high) {
    for_parts(parts, parallel, [&](Part& part) {
      if (static_cast<int64_t>(part.keys.size()) < part.count + kSlack)
        part.keys.resize(static_cast<size_t>(part.count + kSlack));
      part.above = 0;
      part.key_count =
          table.narrow(part.bits.data(), part.count, low, high, part.keys.data(), &part.above);
    });
    int64_t above = 0;
    for (const Part& part : parts) above += part.above;
    return above;
  };
  bracket.high = std::min(bracket.high, highest);
  int64_t above = within(bracket.low, bracket.high);
  if (above >= k) {  // the guess was low: search above it
    bracket = {bracket.high + 1, highest};
    above = within(bracket.low, bracket.high);
  }
  if (parts.count == 1 && parts.first->key_count <= kFewKeys) {
    uint32_t* const keys = parts.first->keys.data();
    std::nth_element(keys, keys + (k - above - 1), keys + parts.first->key_count, std::greater<>());
    return keys[k - above - 1];
  }
  return radix_select(bracket.low, bracket.high, k - above,
                      [&](uint32_t low, uint32_t high, int shift, int64_t* to) {
                        for (const Part& part : parts)
                          count_digits(part.keys.data(), part.key_count, low, high, shift, to);
                      });
}

// The k-th key of all sums, and the candidates anew: all above it, and the ties that count.
uint32_t collect_again(const SelectTable& table, const Selection& selection, Pieces& pieces,
                       Parts parts) {
  const size_t count = pieces.all.size();
  for (size_t i = 0; i < count; ++i)
    pieces.all[i].part = parts.first + i * static_cast<size_t>(parts.count) / count;
  // body(piece, block's first element, places, bits, number) for the keys from `low` on.
  const auto visit = [&](Part& part, uint32_t low, const auto& body) {
    Words places(kBlock + kSlack), bits(kBlock + kSlack);
    uint32_t top = 0;
    for (Piece& piece : pieces.all) {
      if (piece.part != &part) continue;
      const HostSource& source = selection.tensors[piece.tensor].source;
      HostSource sum = source;
      if (source.out != nullptr) sum = {{source.out, nullptr, nullptr, 1.0f, 1.0f}};
      for (int64_t at = piece.begin; at < piece.end; at += kBlock) {
        const int64_t n = table.stream(sum, at, std::min(kBlock, piece.end - at), false, 0, low,
                                       {places.data(), bits.data(), true}, &top);
        body(piece, at, places.data(), bits.data(), n);
      }
    }
  };
  const bool parallel = parts.count > 1;
  for_parts(parts, parallel, [&](Part& part) {
    part.key_count = 0;
    visit(part, 1, [&](Piece&, int64_t, const uint32_t*, const uint32_t*, int64_t n) {
      part.key_count += n;
    });
  });
  int64_t non_zeros = 0;
  for (const Part& part : parts) non_zeros += part.key_count;
  uint32_t key = 1;
  if (non_zeros > selection.k) {
    key = radix_select(1, kTopKey, selection.k,
                       [&](uint32_t low, uint32_t high, int shift, int64_t* counts) {
                         std::vector<std::vector<int64_t>> own(static_cast<size_t>(parts.count),
                                                               std::vector<int64_t>(2048));
                         for_parts(parts, parallel, [&](Part& part) {
                           int64_t* const to = own[static_cast<size_t>(&part - parts.first)].data();
                           visit(part, low,
                                 [&](Piece&, int64_t, const uint32_t*, const uint32_t* bits,
                                     int64_t n) { count_digits(bits, n, low, high, shift, to); });
                         });
                         for (const auto& part : own) {
                           for (size_t digit = 0; digit < part.size(); ++digit)
                             counts[digit] += part[digit];
                         }
                       });
  }
  for (Piece& piece : pieces.all) piece.greater = piece.equal = 0;
  for_parts(parts, parallel, [&](Part& part) {
    visit(part, key, [&](Piece& piece, int64_t, const uint32_t*, const uint32_t* bits, int64_t n) {
      for (int64_t i = 0; i < n; ++i) ++(key_of(bits[i]) > key ? piece.greater : piece.equal);
    });
  });
  share_ties(pieces, selection.k);
  for_parts(parts, parallel, [&](Part& part) {
    int64_t size = kSlack;
    for (Piece& piece : pieces.all) {
      if (piece.part != &part) continue;
      piece.from = piece.until = size - kSlack;
      size += piece.greater + piece.ties;
    }
    part.overflow = false;
    part.count = size - kSlack;
    part.reserve(size);
    visit(part, key,
          [&](Piece& piece, int64_t at, const uint32_t* places, const uint32_t* bits, int64_t n) {
            for (int64_t i = 0; i < n; ++i) {
              if (key_of(bits[i]) == key && --piece.ties < 0) {
                piece.cut = std::min(piece.cut, at + places[i]);
                continue;
              }
              part.start[piece.until] = static_cast<uint32_t>(at - piece.begin) + places[i];
              part.bits[piece.until++] = bits[i];
            }
          });
  });
  return key;
}

}  // namespace
}  // namespace gcext
