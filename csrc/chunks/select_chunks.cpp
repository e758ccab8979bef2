#include "select_chunks.h"

#include <cmath>
#include <cstring>
#include <tuple>

#include "../common/pool.h"
#include "../select/select.h"
#include "arguments.h"

namespace gcext {
namespace {

// Each thread has a contiguous range of chunks, and goes through them one by one:
//
// 1. Stream: the sum to a buffer that stays in the cache, and its candidates, keys >= low, in order
//    of index. Where they are too few, again from the buffer, all that are not zero.
// 2. The exact k-th key among the candidates; ties go to the lowest indices.
// 3. Emit the chosen, at the thread's own offset; fp32: they are cleared in the buffer.
// 4. The buffer goes to out, past the cache, while the next chunk is streamed to another one.
// 5. Guess `low` for the next chunk: no result depends on it.
//
// Then, with the mean of all: ternary values, and out at the chosen places. So of fp32 all memory
// is passed over once.

constexpr int64_t kGrain = 32768;               // elements that are worth a thread
constexpr int64_t kCached = 1 << 20;            // elements of an output that may stay in the cache
constexpr int64_t kTally = 4080;                // values whose mantissas are added at a time
constexpr int64_t kAhead = 32;                  // chosen places whose lines are prefetched
constexpr uint32_t kLower = uint32_t{1} << 18;  // by which low falls at least: 1/32 of an octave

struct Tables {
  const SelectTable& select = GCEXT_TABLE(select_table);
  const ChunkTable& chunks = GCEXT_TABLE(select_chunks_table);
};

struct Job {
  Source source;
  Chunks chunks;
  bool in_place, ternary, bypass;
  void* index;  // int64 if `wide`, else int32
  bool wide;
  uint32_t* value;  // bits of float32
};

// A thread's range of chunks.
struct Part {
  int64_t first, until;
  std::vector<float> sums[2];  // of a chunk, and of the one before
  std::vector<uint32_t> start, bits;
  int64_t at = 0, count = 0;  // its entries: the first, and how many
  uint32_t highest = 0;       // key
  uint32_t least = kInfKey;   // no chosen key is below
  uint64_t bins[kBins] = {};

  Part(const Chunks& chunks, int64_t first, int64_t until)
      : first(first),
        until(until),
        start(static_cast<size_t>(std::min(chunks.n, chunks.size) + kChunkPad)),
        bits(start.size()),
        at(chunks.entry(first)) {
    for (auto& each : sums) each.resize(start.size());
  }
};

// The rank that `low` should have, so that hardly ever fewer than k keys reach it.
int64_t aimed(int64_t k) {
  return k + static_cast<int64_t>(4 * std::sqrt(static_cast<double>(k))) + 8;
}

uint32_t next_low(const Tables& tables, const Part& part, int64_t n, int64_t size, int64_t k,
                  uint32_t low, uint32_t key) {
  const int64_t aim = aimed(k);
  if (2 * aim >= size) return 1;
  if (n >= (k + aim) / 2 && n <= 2 * aim - k) return low;
  if (n >= aim) return tables.chunks.kth(part.bits.data(), n, aim, low);
  const uint32_t fall = 2 * (key - low) + kLower;
  return low > fall ? low - fall : 1;
}

// Moves the chosen among n candidates to the front; returns their number. Without branches on the
// data: which are chosen is hard to predict.
int64_t keep_chosen(Part& part, int64_t n, uint32_t key, int64_t ties) {
  uint32_t* const starts = part.start.data();
  uint32_t* const all = part.bits.data();
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = all[i], start = starts[i];
    const bool tie = key_of(bits) == key && ties > 0;
    ties -= tie;
    starts[count] = start;
    all[count] = bits;
    count += tie || key_of(bits) > key;
  }
  return count;
}

template <class Index>
void write_indices(const Part& part, int64_t n, int64_t base, Index* index) {
  for (int64_t i = 0; i < n; ++i)
    index[i] = static_cast<Index>(base + part.start[static_cast<size_t>(i)]);
}

void run_part(const Job& job, const Tables& tables, Part& part) {
  const Chunks& chunks = job.chunks;
  const Source& source = job.source;
  const Outgoing nothing{nullptr, nullptr, 0, false};
  Outgoing outgoing = nothing;
  uint32_t low = 1;
  for (int64_t c = part.first; c < part.until; ++c) {
    const int64_t begin = chunks.begin(c), size = chunks.size_of(c), k = chunks.k_of(c);
    float* const acc = part.sums[c % 2].data();  // the other one is outgoing
    const float* const memory = source.memory == nullptr ? nullptr : source.memory + begin;
    const Source here{source.tensor + begin, memory, nullptr, source.a, source.b};
    uint32_t* const start = part.start.data();
    int64_t n = tables.chunks.collect(here, size, low, acc, start, &part.highest, outgoing);
    if (n < k && low > 1) {
      low = 1;
      const Source again{acc, nullptr, nullptr, 1.0f, 1.0f};
      n = tables.chunks.collect(again, size, low, acc, start, &part.highest, nothing);
    }
    for (int64_t i = 0; i < n; ++i) part.bits[static_cast<size_t>(i)] = bits_of(acc[start[i]]);
    std::fill_n(part.bits.begin() + n, kChunkPad, 0u);
    if (part.highest < kInfKey && n > 0) {
      const uint32_t key = n > k ? tables.chunks.kth(part.bits.data(), n, k, low) : low;
      const uint32_t lower = next_low(tables, part, n, size, k, low, key);
      const int64_t ties = k - tables.chunks.greater(part.bits.data(), n, key);
      n = keep_chosen(part, n, key, ties);
      const int64_t at = part.at + part.count;
      if (job.wide) {
        write_indices(part, n, begin, static_cast<int64_t*>(job.index) + at);
      } else {
        write_indices(part, n, begin, static_cast<int32_t*>(job.index) + at);
      }
      std::memcpy(job.value + at, part.bits.data(), static_cast<size_t>(n) * sizeof(uint32_t));
      for (int64_t i = 0; i < n && !job.ternary; ++i) acc[part.start[static_cast<size_t>(i)]] = 0;
      part.count += n;
      part.least = std::min(part.least, key);
      low = lower;
    }
    if (source.out == nullptr) continue;
    float* const out = source.out + begin;
    outgoing = {acc, out, size, job.bypass && reinterpret_cast<uintptr_t>(out) % 64 == 0};
  }
  tables.chunks.store(outgoing);
  for (int64_t i = 0; i < part.count; i += kTally) {
    int64_t above = 0, equal = 0;
    tables.select.tally(job.value + part.at + i, std::min(kTally, part.count - i), part.least - 1,
                        &above, &equal, part.bins);
  }
}

// body(index's entry, value's entry) of a part's entries.
template <class Body>
void for_entries(const Job& job, const Part& part, const Body& body) {
  const auto over = [&](auto* index) {
    float* const out = job.source.out;
    for (int64_t i = part.at; i < part.at + part.count; ++i) {
      if (out != nullptr && i + kAhead < part.at + part.count)
        __builtin_prefetch(out + index[i + kAhead], 1);
      body(static_cast<int64_t>(index[i]), job.value[i]);
    }
  };
  if (job.wide) return over(static_cast<const int64_t*>(job.index));
  over(static_cast<const int32_t*>(job.index));
}

// Ternary values for those that part holds, and what they leave in out.
void send_mean(const Job& job, const Part& part, uint32_t mean) {
  for_entries(job, part, [&](int64_t place, uint32_t& value) {
    const uint32_t sent = mean | (value & 0x80000000u);
    if (job.source.out != nullptr) job.source.out[place] = float_of(value) - float_of(sent);
    value = sent;
  });
}

// Moves each part's entries down to the end of those before.
int64_t close_gaps(const Job& job, const std::vector<Part>& parts) {
  const size_t width = job.wide ? 8 : 4;
  char* const index = static_cast<char*>(job.index);
  int64_t count = 0;
  for (const Part& part : parts) {
    const size_t to = static_cast<size_t>(count), from = static_cast<size_t>(part.at),
                 n = static_cast<size_t>(part.count);
    if (to != from) {
      std::memmove(index + to * width, index + from * width, n * width);
      std::memmove(job.value + to, job.value + from, n * sizeof(uint32_t));
    }
    count += part.count;
  }
  return count;
}

int64_t first_not_finite(const Tables& tables, const float* x, int64_t n) {
  for (int64_t at = 0; at < n; at += kGrain) {
    const int64_t end = std::min(n, at + kGrain);
    if (tables.select.highest(x + at, end - at) < kInfKey) continue;
    for (int64_t i = at; i < end; ++i) {
      if (key_of(x[i]) >= kInfKey) return i;
    }
  }
  return -1;
}

bool refused(const Tables& tables, SelectStatus status, const float* x, int64_t n, int64_t* info) {
  const int64_t where = x == nullptr ? -1 : first_not_finite(tables, x, n);
  if (where < 0) return false;
  info[kInfoStatus] = status;
  info[kInfoWhere] = where;
  return true;
}

// Reports what is not finite. In place, what fp32 took from the sum goes back first.
void refuse(const Job& job, const Tables& tables, const std::vector<Part>& parts, int64_t* info) {
  const Source& source = job.source;
  const int64_t n = job.chunks.n;
  if (!job.in_place) {
    if (refused(tables, kSelectTensor, source.tensor, n, info)) return;
    if (refused(tables, kSelectMemory, source.memory, n, info)) return;
  }
  for (const Part& part : parts) {
    if (!job.in_place || job.ternary) break;
    for_entries(job, part,
                [&](int64_t place, uint32_t& value) { source.out[place] = float_of(value); });
  }
  if (refused(tables, kSelectOverflow, source.out, n, info)) return;
  info[kInfoStatus] = kSelectOverflow;
  info[kInfoWhere] = -1;
}

// Whether tensor may be added in place: nothing may be written where it is not finite.
bool accepts(const Job& job, const Tables& tables, int64_t threads, int64_t* info) {
  const int64_t n = job.chunks.n;
  std::vector<uint32_t> highest(static_cast<size_t>(threads));
  parallel_parts(threads, [&](int64_t part) {
    const int64_t from = n * part / threads, until = n * (part + 1) / threads;
    highest[static_cast<size_t>(part)] =
        tables.select.highest(job.source.tensor + from, until - from);
  });
  for (const uint32_t each : highest) {
    if (each >= kInfKey) return !refused(tables, kSelectTensor, job.source.tensor, n, info);
  }
  return true;
}

void run(const Job& job, int64_t* info) {
  const Tables tables;
  const KernelFpEnv env;
  const Chunks& chunks = job.chunks;
  const int64_t count = chunks.count(), threads = std::min(parts_for(chunks.n, kGrain), count);
  std::vector<Part> parts;
  parts.reserve(static_cast<size_t>(threads));
  for (int64_t i = 0; i < threads; ++i)  // all memory before anything is stored
    parts.emplace_back(chunks, count * i / threads, count * (i + 1) / threads);
  if (job.in_place && !accepts(job, tables, threads, info)) return;

  parallel_parts(threads, [&](int64_t i) { run_part(job, tables, parts[static_cast<size_t>(i)]); });
  uint64_t bins[kBins] = {};
  int64_t chosen = 0;
  for (const Part& part : parts) {
    if (part.highest >= kInfKey) return refuse(job, tables, parts, info);
    chosen += part.count;
    for (int bin = 0; bin < kBins; ++bin) bins[bin] += part.bins[bin];
  }
  if (chosen == 0) return;
  const uint32_t mean = exact_mean_bits(bins, static_cast<uint64_t>(chosen));
  if (job.ternary) {
    parallel_parts(threads,
                   [&](int64_t i) { send_mean(job, parts[static_cast<size_t>(i)], mean); });
  }
  info[kInfoCount] = close_gaps(job, parts);
  info[kInfoMean] = mean;
}

std::tuple<Tensor, Tensor, Tensor> select_chunks(const Tensor& tensor,
                                                 const std::optional<Tensor>& memory,
                                                 const std::optional<Tensor>& out, int64_t chunk,
                                                 int64_t k, int64_t last, double a, double b,
                                                 bool ternary) {
  const Chunks chunks = chunk_args(tensor.numel(), chunk, k, last);
  Job job{source_args("select_chunks", tensor, memory, out, a, b),
          chunks,
          out.has_value() && !memory.has_value(),
          ternary,
          false,
          nullptr,
          chunks.n > INT32_MAX,
          nullptr};
  job.bypass = job.source.out != job.source.memory && chunks.n > kCached;
  Tensor index = pooled_empty(chunks.capacity(), job.wide ? ScalarType::Long : ScalarType::Int);
  Tensor value = pooled_empty(chunks.capacity(), ScalarType::Float);
  Tensor info = empty(kInfoSize, ScalarType::Long, tensor);
  int64_t* const field = info.mutable_data_ptr<int64_t>();
  std::fill_n(field, int64_t{kInfoSize}, int64_t{0});
  if (chunks.n == 0) return {index, value, info};
  job.index = index.mutable_data_ptr();
  job.value = static_cast<uint32_t*>(value.mutable_data_ptr());
  try {
    run(job, field);
  } catch (const std::bad_alloc&) {
    field[kInfoStatus] = kSelectNoMemory;
  }
  return {index, value, info};
}

}  // namespace

GCEXT_OPERATOR(CPU, select_chunks,
               "(Tensor tensor, Tensor? memory, Tensor(a!)? out, int chunk, int k, int last, float "
               "a, float b, bool ternary) -> (Tensor index, Tensor value, Tensor info)")

}  // namespace gcext
