// Steps 3 to 6 of select.cpp: what follows the stream.
#pragma once

#include "select_search.h"

namespace gcext {
namespace {

constexpr int64_t kSerial = 8192;  // candidates that one thread settles sooner than two

int64_t first_not_finite(const SelectTable& table, const float* x, int64_t n) {
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t end = std::min(n, at + kBlock);
    if (table.highest(x + at, end - at) < kInfKey) continue;
    for (int64_t i = at; i < end; ++i) {
      if (table.highest(x + i, 1) >= kInfKey) return i;
    }
  }
  return -1;
}

void refuse(int64_t* info, SelectStatus status, int64_t where) {
  info[kInfoStatus] = status;
  info[kInfoWhere] = where;
}

// Step 3: reports the first tensor that is not finite, or whose sum is not.
void refuse_not_finite(const SelectTable& table, const Selection& selection) {
  for (int64_t i = 0; i < selection.count; ++i) {
    const SelectArgs& each = selection.tensors[i];
    int64_t* const info = selection.info + i * kInfoSize;
    const auto refused = [&](SelectStatus status, const float* x) {
      const int64_t where = x == nullptr ? -1 : first_not_finite(table, x, each.n);
      if (where >= 0) refuse(info, status, where);
      return where >= 0;
    };
    if (!each.in_place && refused(kSelectTensor, each.source.tensor)) return;
    if (each.source.half.at != nullptr) {
      int64_t where = 0;
      while (where < each.n && std::isfinite(tensor_at(each.source, where))) ++where;
      if (where < each.n) return refuse(info, kSelectTensor, where);
    }
    if (!each.in_place && refused(kSelectMemory, each.source.memory)) return;
    if (refused(kSelectOverflow, each.source.out)) return;
  }
  refuse(selection.info, kSelectOverflow, -1);
}

// Tells each tensor of a selection, where it asks, what was sent of it: the keys above `key`, and
// those at it up to the first that got no share.
void state_what_was_sent(const Selection& selection, const Pieces& pieces, int64_t key) {
  for (int64_t i = 0; i < selection.count; ++i) {
    const SelectArgs& each = selection.tensors[i];
    const int64_t mean = selection.info[i * kInfoSize + kInfoMean];
    if (each.next != nullptr) set_sent(each.next, key, each.n, selection.ternary ? mean : -1);
  }
  for (const Piece& piece : pieces.all) {
    int64_t* const next = selection.tensors[piece.tensor].next;
    if (next != nullptr) next[kSentCut] = std::min(next[kSentCut], piece.cut);
  }
}

// Steps 3 to 6, of pieces that have been streamed.
void finish(const SelectTable& table, const Selection& selection, Pieces& pieces, Parts parts,
            Bracket bracket) {
  const int64_t k = selection.k;
  int64_t count = 0;
  uint32_t highest = 0;
  bool overflow = false, no_memory = false;
  for (const Part& part : parts) {
    count += part.count;
    highest = std::max(highest, part.highest);
    overflow = overflow || part.overflow;
    no_memory = no_memory || part.no_memory;
  }
  if (highest >= kInfKey) return refuse_not_finite(table, selection);
  if (no_memory) throw std::bad_alloc();
  if (k == 0) return state_what_was_sent(selection, pieces, kInfKey);

  uint32_t key;
  const bool parallel = parts.count > 1 && count > kSerial;
  if (overflow || (count < k && bracket.low > 1)) {
    key = collect_again(table, selection, pieces, parts);
  } else {
    key = count <= k ? bracket.low : kth_candidate(table, parts, bracket, highest, k, parallel);
  }

  for_pieces(pieces, parallel, parts.count, [&](Piece& piece) {
    piece.greater = piece.equal = 0;
    table.tally(piece.part->bits.data() + piece.from, piece.until - piece.from, key, &piece.greater,
                &piece.equal, piece.bins);
  });
  share_ties(pieces, k);
  int64_t offset = 0;
  Piece* sum = nullptr;  // a tensor's first piece takes the bins of the others
  const auto close = [&] {
    if (sum == nullptr) return;
    int64_t* const info = selection.info + sum->tensor * kInfoSize;
    if (info[kInfoCount] > 0)
      info[kInfoMean] = exact_mean_bits(sum->bins, static_cast<uint64_t>(info[kInfoCount]));
  };
  for (Piece& piece : pieces.all) {
    const int64_t chosen = piece.greater + piece.ties;
    piece.offset = offset;
    offset += chosen;
    piece.bins[bin_of(key)] += static_cast<uint64_t>(piece.ties) * mantissa_of(key);
    selection.info[piece.tensor * kInfoSize + kInfoCount] += chosen;
    if (sum != nullptr && sum->tensor == piece.tensor) {
      for (int bin = 0; bin < kBins; ++bin) sum->bins[bin] += piece.bins[bin];
    } else {
      close();
      sum = &piece;
    }
  }
  close();

  for_pieces(pieces, parallel, parts.count, [&](Piece& piece) {
    // Candidates up to `split` may be ties; from there on the piece has used up its share.
    Part& part = *piece.part;
    int64_t split = piece.until;
    if (piece.ties < piece.equal) {
      split = piece.from;
      for (int64_t ties = piece.ties; ties > 0; ++split)
        ties -= key_of(part.bits.data()[split]) == key;
      piece.cut = piece.begin + (piece.ties == 0 ? 0 : part.start.data()[split - 1] + int64_t{1});
    }
    const SelectArgs& tensor = selection.tensors[piece.tensor];
    float* const out = tensor.next == nullptr ? tensor.source.out : nullptr;
    const uint32_t mean =
        static_cast<uint32_t>(selection.info[piece.tensor * kInfoSize + kInfoMean]);
    int64_t at = piece.offset;
    const auto emit = [&](int64_t from, int64_t until, uint32_t low) {
      at = table.emit(part.at(from), until - from, low, piece.begin, selection.ternary, mean,
                      selection.to, at, out);
    };
    emit(piece.from, split, key);
    emit(split, piece.until, key + 1);
  });
  state_what_was_sent(selection, pieces, key);
}

}  // namespace
}  // namespace gcext
