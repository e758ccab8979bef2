// project: the bodies, compiled once per instruction set. See project.h.
#include <cstdint>
#include <cstring>

#include "project.h"

namespace gcext::GCEXT_ISA {
namespace {

void add(const double* __restrict row, int64_t n, double weight, double* __restrict sum) {
  for (int64_t j = 0; j < n; ++j) sum[j] += weight * row[j];
}

// Four of them at a time, each element's sums in order: what they add to is loaded once.
void add_all(const double* const* rows, const double* weights, int64_t count, int64_t begin,
             int64_t end, double* __restrict sum) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const double *a = rows[i], *b = rows[i + 1], *c = rows[i + 2], *d = rows[i + 3];
    const double wa = weights[i], wb = weights[i + 1], wc = weights[i + 2], wd = weights[i + 3];
    for (int64_t j = begin; j < end; ++j)
      sum[j] = (((sum[j] + wa * a[j]) + wb * b[j]) + wc * c[j]) + wd * d[j];
  }
  for (; i < count; ++i) add(rows[i] + begin, end - begin, weights[i], sum + begin);
}

// Updates in groups: within one, each change is visible to the next update; beyond it, all changes
// of the group are added at once.
void meet(const double* dots, int64_t size, int64_t m, int64_t first, int64_t rows, double* along,
          double* change) {
  constexpr int64_t kGroup = 16;
  for (int64_t r = 0; r < rows; ++r) {
    memcpy(along + r * m, dots + (first + r) * size, sizeof(double) * static_cast<size_t>(m));
    change[first + r] = 1;
  }
  for (int64_t begin = 0; begin < m; begin += kGroup) {
    const int64_t end = begin + kGroup < m ? begin + kGroup : m;
    for (int64_t r = 0; r < rows; ++r) {
      double* mine = along + r * m;
      const double* others[kGroup];
      double weights[kGroup];
      int64_t count = 0;
      for (int64_t i = begin; i < end; ++i) {
        const double* other = dots + i * size;
        if (i == first + r || !(mine[i] < 0 && other[i] > 0)) continue;
        const double step = mine[i] / other[i];
        change[i] -= step;
        for (int64_t j = i + 1; j < end; ++j) mine[j] += -step * other[j];
        others[count] = other;
        weights[count++] = -step;
      }
      add_all(others, weights, count, end, m, mine);
    }
  }
}

}  // namespace

const ProjectTable project_table = {meet, add};

}  // namespace gcext::GCEXT_ISA
