// gram, steps 1 to 5: the counts of all pairs of packets that are all ternary, or all signs.
#pragma once

#include <cstring>
#include <memory>

#include "../common/packet.h"
#include "gram.h"
#include "gram_amx.h"

namespace gcext {

// Pairs j < i in rows: (1,0) (2,0) (2,1) (3,0) .. Row i is indexed by j.
inline int64_t pair_row(int64_t i) { return i * (i - 1) / 2; }

inline const GramTable& count_table() {
#ifdef GCEXT_HAVE_AVX512
  // Without VPOPCNTDQ, AVX-512 has nothing that AVX2 lacks for counting bits.
  if (isa() == Isa::avx512 && !__builtin_cpu_supports("avx512vpopcntdq")) return avx2::gram_table;
#endif
  return GCEXT_TABLE(gram_table);
}

// What one thread counts.
class PairCounts {
 public:
  // `codes`: of signs, that is where the packets are dense.
  PairCounts(const std::vector<PacketView>& packets, const std::vector<ValueCode>& codes,
             int64_t numel)
      : packets_(packets),
        codes_(codes),
        signs_(!packets.empty() && packets[0].dense),
        m_(static_cast<int64_t>(packets.size())),
        numel_(numel),
        tiles_(m_ >= TileCounts::kFewest && m_ <= TileCounts::kMost && TileCounts::available()
                   ? std::make_unique<TileCounts>(m_)
                   : nullptr),
        many_(what_is_many()),
        crowded_(signs_),
        count_(static_cast<size_t>(pair_row(m_))),
        planes_(packets.size()),
        used_(packets.size()),
        tally_(1),
        every_(kCountTile),
        scratch_(kMarkBytes),
        first_(many_ > 2 ? kCountTile : 0),
        next_(first_.size()) {
    for (int64_t e = 0; e < kCountTile; ++e) every_[e] = static_cast<uint16_t>(e + 1);
  }

  // Adds tiles [first, last).
  void run(int64_t first, int64_t last, std::atomic<bool>* rising) {
    Walk walk(packets_, first * kCountTile, last == tiles(numel_) ? numel_ : last * kCountTile,
              numel_, rising);
    for (int64_t at = first; at < last;) {
      const int64_t begin = at * kCountTile;
      count_tile(walk, begin, begin + std::min(kCountTile, numel_ - begin));
      // Huge tensors may have tiles without an entry.
      at = signs_ ? at + 1 : std::max(at + 1, walk.next() / kCountTile);
    }
  }

  static int64_t tiles(int64_t numel) { return numel / kCountTile + (numel % kCountTile != 0); }

  // The counts of all that was run, as rows; there is nothing left.
  std::vector<int64_t> release() {
    flush();
    if (tiles_) tiles_->spill(count_.data());
    return std::move(count_);
  }

 private:
  // About, on one core: an entry on a list, a meeting, an entry on none.
  static constexpr double kEntryNs = 8, kMeetingNs = 2, kUnlistedNs = 2;

  double column_ns() const {
    return static_cast<double>(m_ * m_) / 128 * (tiles_ ? TileCounts::kWordNs : table_.word_ns);
  }

  // The fewest entries with which an element is cheaper as a column than as a list.
  uint16_t what_is_many() const {
    double entries = 2;
    while (entries * (kEntryNs + entries / 2 * kMeetingNs) < column_ns()) ++entries;
    if (m_ > kMostPackets) entries = 2;
    return static_cast<uint16_t>(entries);
  }

  void count_tile(Walk& walk, int64_t begin, int64_t end) {
    int64_t entries = 0;
    if (crowded_) {
      const int64_t words = take_words(end - begin);
      for (int64_t i = 0; i < m_; ++i) {
        entries += walk.enter(i, end).size();
        if (signs_) {
          mark_signs(i, begin, end - begin, words);
        } else {
          mark(walk, i, begin, every_.data(), words);
        }
      }
    } else {
      Tally& tally = tally_[0];
      std::memset(&tally, 0, sizeof tally);
      for (int64_t i = 0; i < m_; ++i) {
        entries += walk.enter(i, end).size();
        table_.tally(packets_[i], walk[i], begin, many_, &tally);
      }
      if (many_ > 2 && make_lists(entries)) {
        const Lists lists = {first_.data(), next_.data(), met_.data()};
        for (int64_t i = 0; i < m_; ++i)
          table_.meet(packets_[i], i, walk[i], begin, lists, count_.data() + pair_row(i));
      }
      if (const int64_t words = take_words(tally.columns); words > 0)
        for (int64_t i = 0; i < m_; ++i) mark(walk, i, begin, tally.column, words);
    }
    crowded_ = signs_ || entries >= many_ * (end - begin);
  }

  // Step 2.
  int64_t take_words(int64_t columns) {
    const int64_t words = (columns + 63) / 64;
    if (words_ + words > kCountWords) flush();
    words_ += words;
    return words;
  }

  void mark(const Walk& walk, int64_t i, int64_t begin, const uint16_t* column, int64_t words) {
    table_.mark(packets_[i], walk[i], begin, column, words_ - words, words, scratch_.data(),
                &planes_[i]);
    used_[i] |= walk[i].size() > 0;
  }

  // Step 2 of signs: an entry at each of the n elements, and the bits are the plane.
  void mark_signs(int64_t i, int64_t begin, int64_t n, int64_t words) {
    uint64_t* there = planes_[i].there + (words_ - words);
    std::memset(there, 0xff, static_cast<size_t>(8 * words));
    if (n % 64 != 0) there[words - 1] = (uint64_t{1} << n % 64) - 1;
    std::memcpy(planes_[i].minus + (words_ - words), codes_[i].bits + begin / 8,
                static_cast<size_t>((n + 7) / 8));
    used_[i] = true;
  }

  // Step 4; whether there is any. Lists cost each entry of the tile something, even those that are
  // on none: where only few elements would have one, they get columns after all.
  bool make_lists(int64_t entries) {
    Tally& tally = tally_[0];
    uint32_t sum = 1;  // behind the place of those without a list
    int64_t listed = 0;
    for (int64_t e = 0; e < kCountTile; ++e) {
      const bool list = tally.number[e] > 1 && tally.number[e] < many_;
      first_[e] = next_[e] = list ? sum : 0;
      sum += list ? tally.number[e] : 0;
      listed += list;
    }
    if (static_cast<double>(listed) * column_ns() < static_cast<double>(entries) * kUnlistedNs) {
      for (int64_t e = 0; e < kCountTile; ++e)
        if (first_[e] > 0) tally.column[e] = ++tally.columns;
      return false;
    }
    if (met_.size() < sum) met_.resize(sum);
    return true;
  }

  // Step 3.
  void flush() {
    if (tiles_) {
      tiles_->add(planes_, words_);
      if ((in_tiles_ += 64 * words_) >= int64_t{1} << 30) {
        tiles_->spill(count_.data());
        in_tiles_ = 0;
      }
    } else {
      count_bits();
    }
    std::fill(used_.begin(), used_.end(), 0);
    words_ = 0;
  }

  void count_bits() {
    while (words_ % kWordStep != 0) {
      for (Planes& planes : planes_) planes.there[words_] = planes.minus[words_] = 0;
      ++words_;
    }
    std::vector<int64_t> here;
    std::vector<const Planes*> planes;
    for (int64_t i = 0; i < m_; ++i) {
      if (!used_[i]) continue;
      here.push_back(i);
      planes.push_back(&planes_[i]);
    }
    const int64_t count = static_cast<int64_t>(here.size());
    while (!planes.empty() && planes.size() % kColumns != 0) planes.push_back(planes.back());
    // Columns in groups that stay in the first-level cache while all rows pass by.
    for (int64_t group = 0; group < count; group += kGroup) {
      for (int64_t row = group; row < count; row += kRows) {
        const int64_t last = std::min({group + kGroup, row + kRows, count});
        for (int64_t column = group; column < last; column += kColumns) {
          int64_t sum[kRows * kColumns];
          table_.agree(&planes[row], &planes[column], words_, sum);
          for (int64_t r = 0; r < kRows && row + r < count; ++r) {
            int64_t* to = count_.data() + pair_row(here[row + r]);
            const int64_t below = std::min(kColumns, row + r - column);
            for (int64_t c = 0; c < below; ++c) to[here[column + c]] += sum[kColumns * r + c];
          }
        }
      }
    }
  }

  static constexpr int64_t kGroup = 16;  // 32 KiB of planes
  static_assert(kGroup % kColumns == 0 && kGroup % kRows == 0, "groups are made of blocks");

  const GramTable& table_ = count_table();
  const std::vector<PacketView>& packets_;
  const std::vector<ValueCode>& codes_;
  const bool signs_;
  const int64_t m_, numel_;
  const std::unique_ptr<TileCounts> tiles_;  // null where there are none: bits are counted then
  int64_t in_tiles_ = 0;                     // columns since the last spill
  const uint16_t many_;
  bool crowded_;  // the last tile: elements with few entries are not worth looking for
  std::vector<int64_t> count_;
  std::vector<Planes> planes_;
  std::vector<char> used_;  // packets with an entry in the planes
  int64_t words_ = 0;       // of the planes in use
  std::vector<Tally> tally_;
  std::vector<uint16_t> every_;  // a column for every element
  std::vector<uint8_t> scratch_;
  std::vector<uint32_t> first_, next_;
  std::vector<Met> met_;
};

}  // namespace gcext
