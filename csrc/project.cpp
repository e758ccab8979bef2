#include "project.h"

#include <cmath>
#include <numeric>

#include "common/stable.h"

namespace gcext {
namespace {

// What is worth a thread's start.
constexpr int64_t kMeetingsPerThread = 1 << 15, kColumnsPerThread = 512;

class Projection {
 public:
  Projection(const double* dots, int64_t size, int64_t m, double* mean)
      : dots_(dots),
        size_(size),
        m_(m),
        mean_(mean),
        along_(static_cast<size_t>(size)),
        all_(static_cast<size_t>(m)) {
    std::iota(all_.begin(), all_.end(), 0);
  }

  // Step 1.
  void internal(int64_t kept) {
    const int64_t free = m_ - kept, blocks = (free + kProjectRows - 1) / kProjectRows;
    std::vector<std::vector<double>> change(static_cast<size_t>(blocks));
    const int64_t parts = parts_for(free * m_, kMeetingsPerThread);
    parallel_parts(parts, [&](int64_t part) {
      std::vector<double> along(static_cast<size_t>(kProjectRows * m_));
      for (int64_t block = part; block < blocks; block += parts) {
        const int64_t first = block * kProjectRows, rows = std::min(kProjectRows, free - first);
        change[block].resize(static_cast<size_t>(m_));
        table_.meet(dots_, size_, m_, first, rows, along.data(), change[block].data());
      }
    });
    for (int64_t i = 0; i < size_; ++i) mean_[i] = i >= free && i < m_ ? 1 : 0;
    for (const std::vector<double>& each : change) table_.add(each.data(), m_, 1, mean_);
    for (int64_t i = 0; i < m_; ++i) mean_[i] /= static_cast<double>(m_);
    add_rows(all_, mean_, &along_);
  }

  // Step 2.
  void external(int64_t first, int64_t last) {
    std::vector<int64_t> conflict;
    double mean_h = 0, h_h = 0;
    for (int64_t j = first; j < last; ++j) {
      if (!(along_[j] < 0)) continue;
      conflict.push_back(j);
      mean_h += along_[j];
    }
    std::vector<double> h(static_cast<size_t>(size_));
    add_rows(conflict, nullptr, &h);
    for (int64_t j : conflict) h_h += h[j];
    if (!(mean_h < 0 && h_h > 0)) return;
    const double step = mean_h / h_h;
    for (int64_t j : conflict) mean_[j] -= step;
    table_.add(h.data(), size_, -step, along_.data());
  }

  // Step 3.
  void restore_length() {
    double square = 0, most = 0, plain = 0;
    std::vector<double> sum(static_cast<size_t>(size_));
    add_rows(all_, nullptr, &sum);
    for (int64_t j = 0; j < m_; ++j) plain += sum[j];
    for (int64_t j = 0; j < size_; ++j) {
      square += mean_[j] * along_[j];
      most += std::fabs(mean_[j]) * std::sqrt(std::max(dots_[j * size_ + j], 0.0));
    }
    const bool nothing = !(square > most * most * 0x1p-48);
    const double m = static_cast<double>(m_);
    const double length = nothing ? 0 : std::sqrt(std::max(plain, 0.0) / (m * m) / square);
    for (int64_t j = 0; j < size_; ++j) mean_[j] = nothing ? 0 : mean_[j] * length;
  }

 private:
  // sum += weight_i (without weights: 1) times row i, in order; threads share the columns.
  void add_rows(const std::vector<int64_t>& rows, const double* weight, std::vector<double>* sum) {
    const int64_t parts = parts_for(size_, kColumnsPerThread);
    parallel_parts(parts, [&](int64_t part) {
      const int64_t begin = size_ * part / parts, n = size_ * (part + 1) / parts - begin;
      for (int64_t i : rows)
        table_.add(dots_ + i * size_ + begin, n, weight == nullptr ? 1 : weight[i],
                   sum->data() + begin);
    });
  }

  const ProjectTable& table_ = GCEXT_TABLE(project_table);
  const double* dots_;
  const int64_t size_, m_;
  double* mean_;
  std::vector<double> along_;  // the mean's products with all updates
  std::vector<int64_t> all_;   // this round's updates: 0 .. m - 1
};

Tensor project(Tensor dots, int64_t m, int64_t kept, const std::vector<int64_t>& first,
               const std::vector<int64_t>& last) {
  check_dense(dots, ScalarType::Double, "project: dots");
  GCEXT_CHECK(dots.dim() == 2 && dots.size(0) == dots.size(1),
              "project: dots must be a square matrix. Pass what gram returned.");
  const int64_t size = dots.size(0);
  GCEXT_CHECK(m >= 1 && m <= size, "project: m must be in [1, ", size, "], got ", m, ".");
  GCEXT_CHECK(kept >= 0 && kept <= m, "project: kept must be in [0, ", m, "], got ", kept, ".");
  GCEXT_CHECK(first.size() == last.size(), "project: a span needs both ends, got ", first.size(),
              " and ", last.size(), ".");
  for (size_t i = 0; i < first.size(); ++i)
    GCEXT_CHECK(0 <= first[i] && first[i] <= last[i] && last[i] <= size,
                "project: a span must lie within [0, ", size, "], got [", first[i], ", ", last[i],
                ").");
  const KernelFpEnv env;
  Tensor mean = empty({size}, ScalarType::Double);
  Projection projection(dots.const_data_ptr<double>(), size, m, mean.mutable_data_ptr<double>());
  projection.internal(kept);
  for (size_t i = 0; i < first.size(); ++i) projection.external(first[i], last[i]);
  projection.restore_length();
  return mean;
}

}  // namespace

GCEXT_OPERATOR(CPU, project, "(Tensor dots, int m, int kept, int[] first, int[] last) -> Tensor")

}  // namespace gcext
