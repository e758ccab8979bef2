// Bodies of sketch.h for one instruction set: hashes in loops that the compiler turns into vectors,
// a batch at a time, then what they address one by one.
#include "sketch.h"

namespace gcext::GCEXT_ISA {
namespace {

constexpr int64_t kBatch = 64;
constexpr int64_t kCachedCells = 1 << 19;  // 4 MiB of sums: a larger table may be in no cache

int64_t take_batch(const SketchElements& elements, int64_t at, int64_t n, uint64_t* element) {
  const int64_t m = n - at < kBatch ? n - at : kBatch;
  for (int64_t i = 0; i < m; ++i) element[i] = elements[at + i];
  return m;
}

// Buckets and signs of a batch in one row; past m anything.
void place(const uint64_t* element, uint64_t row_key, int64_t cols, int64_t* bucket,
           int64_t* negative) {
  for (int64_t i = 0; i < kBatch; ++i) {
    const uint64_t hash = sketch_hash(row_key, element[i]);
    bucket[i] = sketch_bucket(hash, cols);
    negative[i] = static_cast<int64_t>(sketch_negative(hash));
  }
}

// A batch of elements: what to add, and to which cells of a row.
struct Batch {
  uint64_t element[kBatch] = {};
  int64_t units[kBatch], bucket[kBatch], negative[kBatch], size = 0;

  void take(const float* value, const SketchElements& elements, int64_t at, int64_t n,
            double per_unit) {
    size = take_batch(elements, at, n, element);
    for (int64_t i = 0; i < size; ++i) units[i] = sketch_units(value[at + i], per_unit);
  }
  void find(const SketchShape& shape, int64_t row) {
    place(element, shape.row_key(row), shape.cols, bucket, negative);
  }
  void add(int64_t* row) const {
    for (int64_t i = 0; i < size; ++i) row[bucket[i]] += (units[i] ^ -negative[i]) + negative[i];
  }
};

// Of a table that may be in no cache: row by row, so that no more than a row has to stay in any,
// and the cells of the next batch are asked for before they are needed.
void add_far(const float* value, int64_t n, const SketchElements& elements,
             const SketchShape& shape, double per_unit, int64_t* sums) {
  Batch batch[2];  // this one, and the next one
  for (int64_t row = 0; row < shape.rows; ++row) {
    int64_t* const to = sums + row * shape.cols;
    const auto find = [&](int64_t at) {
      Batch& its = batch[at / kBatch % 2];
      its.take(value, elements, at, n, per_unit);
      its.find(shape, row);
      for (int64_t i = 0; i < its.size; ++i) __builtin_prefetch(to + its.bucket[i], 1);
    };
    find(0);
    for (int64_t at = 0; at < n; at += kBatch) {
      if (at + kBatch < n) find(at + kBatch);
      batch[at / kBatch % 2].add(to);
    }
  }
}

void add(const float* value, int64_t n, SketchElements elements, const SketchShape& shape,
         double per_unit, int64_t* sums) {
  if (shape.cells() > kCachedCells) return add_far(value, n, elements, shape, per_unit, sums);
  Batch batch;
  for (int64_t at = 0; at < n; at += kBatch) {
    batch.take(value, elements, at, n, per_unit);
    for (int64_t row = 0; row < shape.rows; ++row) {
      batch.find(shape, row);
      batch.add(sums + row * shape.cols);
    }
  }
}

// Sorts the rows of every column by odd-even transposition, and leaves the middle in `estimate`.
void middle(float (*x)[kBatch], int64_t rows, int64_t m, float* estimate) {
  for (int64_t round = 0; round < rows; ++round) {
    for (int64_t row = round % 2; row + 1 < rows; row += 2) {
      for (int64_t i = 0; i < kBatch; ++i) {
        const float a = x[row][i], b = x[row + 1][i];
        x[row][i] = b < a ? b : a;
        x[row + 1][i] = b < a ? a : b;
      }
    }
  }
  for (int64_t i = 0; i < m; ++i) estimate[i] = sketch_middle(x[(rows - 1) / 2][i], x[rows / 2][i]);
}

void query(const float* table, const SketchShape& shape, SketchElements elements, int64_t n,
           float* estimate) {
  uint64_t element[kBatch] = {};
  int64_t bucket[kBatch], negative[kBatch];
  float x[kSketchRows][kBatch];
  for (int64_t at = 0; at < n; at += kBatch) {
    const int64_t m = take_batch(elements, at, n, element);
    for (int64_t row = 0; row < shape.rows; ++row) {
      place(element, shape.row_key(row), shape.cols, bucket, negative);
      const float* const from = table + row * shape.cols;
      for (int64_t i = 0; i < kBatch; ++i) {
        const uint32_t sign = static_cast<uint32_t>(negative[i]) << 31;
        x[row][i] = float_of(bits_of(from[bucket[i]]) ^ sign);
      }
    }
    middle(x, shape.rows, m, estimate + at);
  }
}

uint32_t round(const int64_t* sums, int64_t parts, int64_t stride, int64_t n, double unit,
               float* table) {
  uint32_t top = 0;
  for (int64_t i = 0; i < n; ++i) {
    int64_t sum = sums[i];
    for (int64_t part = 1; part < parts; ++part) sum += sums[part * stride + i];
    table[i] = sketch_cell(sum, unit);
    const uint32_t key = key_of(table[i]);
    top = key > top ? key : top;
  }
  return top;
}

}  // namespace

const SketchTable sketch_table = {add, query, round};

}  // namespace gcext::GCEXT_ISA
