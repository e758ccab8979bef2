// gram, steps 5 and 6: the sums of the pairs that are not both ternary.
#pragma once

#include "gram.h"
#include "packet.h"

namespace gcext {

// Pairs i <= j in rows: (0,0) (0,1) .. (0,m-1) (1,1) .. Row i is indexed by j.
inline int64_t triangle_row(int64_t i, int64_t m) { return i * m - i * (i - 1) / 2 - i; }

// What one chunk adds up.
class PairSums {
 public:
  // `ternary` says which packets are. `sum` is the upper triangle, all +0.
  PairSums(const std::vector<PacketView>& packets, const std::vector<char>& ternary, int64_t numel,
           double* sum)
      : packets_(packets),
        ternary_(ternary),
        m_(static_cast<int64_t>(packets.size())),
        numel_(numel),
        sum_(sum),
        tile_(kGramTile) {
    bool all = true;  // of the packets from i on, none of them dense, are ternary
    several_.resize(packets.size());
    for (int64_t i = m_ - 1; i >= 0; --i) {
      (packets[i].dense ? dense_ : sparse_).push_back(i);
      all &= packets[i].dense || ternary[i];
      several_[i] = !packets[i].dense && !all;
    }
    std::reverse(dense_.begin(), dense_.end());
    std::reverse(sparse_.begin(), sparse_.end());
  }

  static int64_t tiles(int64_t numel) { return numel / kGramTile + (numel % kGramTile != 0); }

  // Adds tiles [first, last).
  void run(int64_t first, int64_t last, Walk::Verdict* verdict) {
    Walk walk(packets_, first * kGramTile, last == tiles(numel_) ? numel_ : last * kGramTile,
              numel_, verdict);
    for (int64_t tile = first; tile < last;) {
      begin_ = tile * kGramTile;
      size_ = std::min(kGramTile, numel_ - begin_);
      for (int64_t i : sparse_) walk.enter(i, begin_ + size_);
      for (int64_t i : sparse_)
        if (walk[i].size() > 0) sparse_row(walk, i);
      dense_blocks();
      const int64_t next = walk.next() / kGramTile;
      tile = dense_.empty() ? std::max(tile + 1, next) : tile + 1;
    }
  }

 private:
  double& sum(int64_t i, int64_t j) {
    return sum_[triangle_row(std::min(i, j), m_) + std::max(i, j)];
  }

  void sparse_row(const Walk& walk, int64_t i) {
    for (int64_t j : dense_)
      sum(i, j) += table_.dot_entries(packets_[i], walk[i], begin_, packets_[j].value + begin_);
    if (!several_[i]) return;
    table_.spread(packets_[i], walk[i], begin_, false, tile_.data());
    for (int64_t j : sparse_)
      if (j >= i && !(ternary_[i] && ternary_[j]) && walk[j].size() > 0)
        sum(i, j) += table_.dot_entries(packets_[j], walk[j], begin_, tile_.data());
    table_.spread(packets_[i], walk[i], begin_, true, tile_.data());
  }

  void dense_blocks() {
    const int64_t count = static_cast<int64_t>(dense_.size());
    for (int64_t row = 0; row < count; row += kRows)
      for (int64_t column = row; column < count; column += kColumns) {
        const float *rows[kRows], *columns[kColumns];
        for (int64_t r = 0; r < kRows; ++r) rows[r] = dense_tile(row + r);
        for (int64_t c = 0; c < kColumns; ++c) columns[c] = dense_tile(column + c);
        double dot[kRows * kColumns];
        table_.dot_dense(rows, columns, size_, dot);
        for (int64_t r = 0; r < kRows; ++r)
          for (int64_t c = 0; c < kColumns; ++c)
            if (row + r < count && column + c < count && column + c >= row + r)
              sum(dense_[row + r], dense_[column + c]) += dot[kColumns * r + c];
      }
  }

  // Behind the last one comes the last one: blocks are whole.
  const float* dense_tile(int64_t place) const {
    return packets_[dense_[std::min(place, static_cast<int64_t>(dense_.size()) - 1)]].value +
           begin_;
  }

  const GramTable& table_ = GCEXT_TABLE(gram_table);
  const std::vector<PacketView>& packets_;
  const std::vector<char>& ternary_;
  const int64_t m_, numel_;
  double* sum_;
  std::vector<float> tile_;
  std::vector<int64_t> dense_, sparse_;
  std::vector<char> several_;  // some sparse packet from here on needs this one spread
  int64_t begin_ = 0, size_ = 0;
};

}  // namespace gcext
