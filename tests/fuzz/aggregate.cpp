// The target `aggregate`: packets as the operators take them, right and wrong, against the plain
// formulas of the headers in csrc/.
#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "bits.h"
#include "common/packet.h"
#include "natural.h"

namespace gcext::fuzz {
namespace {

enum class Form { dense, ternary, floats, signs, sparse_signs, levels, powers, codes };

// One packet: what the operators are given, and what it means.
struct Packet {
  Form form;
  Tensor index, value, norms;
  double scale = 0;
  int64_t steps = 0, bucket = 0, table = -1;
  Numbers at;            // of a sparse one
  std::vector<float> x;  // one for each of `at`, or for each element
  bool dense = false;
};

// Codes of k elements: their values, bits and scales.
void fill_codes(Choices* choices, int64_t k, Packet* packet, std::vector<uint8_t>* bits,
                std::vector<float>* scales) {
  Random& random = choices->random;
  const auto table = static_cast<CodeTable>(random.below(kCodeTables));
  const bool halves = table == CodeTable::kFloat16 || table == CodeTable::kBfloat16;
  const int width = halves                          ? 16
                    : table == CodeTable::kDynamic8 ? 8
                                                    : static_cast<int>(random.within(1, 8));
  packet->table = static_cast<int64_t>(table);
  packet->steps = width;
  packet->bucket = halves || choices->once_in(2) ? 0 : random.within(1, 600);
  const int64_t each = floats_per_bucket(table, width);
  scales->resize(static_cast<size_t>(bucket_count(k, packet->bucket) * each));
  for (float& scale : *scales) scale = std::fabs(random.finite(false));
  bits->assign(static_cast<size_t>(plane_bytes(k, width)), 0);
  for (int64_t i = 0; i < k; ++i) {
    const auto code = static_cast<uint32_t>(random.below(halves ? 1 << 14 : 1 << width));
    const float* own =
        scales->data() + (packet->bucket == 0 ? 0 : i / packet->bucket) * (halves ? 0 : each);
    packet->x[static_cast<size_t>(i)] =
        table == CodeTable::kValues     ? own[code]
        : table == CodeTable::kUniform  ? uniform_value(*own, code, width)
        : table == CodeTable::kDynamic8 ? *own * kDynamic8.value[code]
        : table == CodeTable::kFloat16  ? half_value(code)
                                        : bfloat_value(code);
    for (int j = 0; j < width; ++j) {
      const int64_t bit = i * width + j;
      uint8_t& byte = (*bits)[static_cast<size_t>(bit >> 3)];
      byte = static_cast<uint8_t>(byte | (code >> j & 1) << (bit & 7));
    }
  }
}

Packet make_packet(Choices* choices, int64_t numel, bool coded, bool all_sparse) {
  Random& random = choices->random;
  Packet packet;
  constexpr Form kForms[] = {Form::dense,  Form::ternary, Form::ternary,
                             Form::floats, Form::signs,   Form::sparse_signs,
                             Form::levels, Form::powers,  Form::codes};
  packet.form = kForms[choices->below(coded ? 9 : 4)];
  packet.dense = packet.form == Form::dense || packet.form == Form::signs ||
                 packet.form == Form::powers || packet.form == Form::codes;
  if (all_sparse && packet.dense) {
    packet.form = Form::ternary;
    packet.dense = false;
  }
  const int64_t most = choices->once_in(4) ? 100000 : 40;
  const int64_t k = packet.dense ? numel : random.below(std::min<int64_t>(numel, most) + 1);
  if (!packet.dense) packet.at = make_index(&random, k, numel);
  packet.index = index_tensor(packet.at, numel > INT32_MAX || choices->once_in(3));
  packet.x.resize(static_cast<size_t>(k));
  packet.scale = k == 0 ? 0 : static_cast<double>(std::fabs(random.finite(false))) + 0.125;
  const auto scale = static_cast<float>(packet.scale);
  std::vector<uint8_t> bits(packet.x.size() / 8 + (packet.x.size() % 8 != 0));
  std::vector<int16_t> level(packet.x.size());
  std::vector<float> norm;
  if (packet.form == Form::levels) {
    packet.steps = random.within(1, 300);
    packet.bucket = choices->once_in(2) ? 0 : random.within(1, 600) + numel / 5000;
    norm.resize(static_cast<size_t>(packet.bucket == 0 ? 1
                                    : numel == 0       ? 1
                                                       : (numel - 1) / packet.bucket + 1));
    for (float& each : norm) each = std::fabs(random.finite(false));
  }
  if (packet.form == Form::codes) fill_codes(choices, k, &packet, &bits, &norm);
  if (packet.form == Form::powers) packet.table = kPowerTable;
  for (size_t i = 0; i < packet.x.size() && packet.form != Form::codes; ++i) {
    const bool minus = random.once_in(2);
    if (packet.form == Form::dense || packet.form == Form::floats) {
      packet.x[i] = random.finite(false);
    } else if (packet.form == Form::levels) {
      level[i] = static_cast<int16_t>(random.within(-packet.steps, packet.steps));
      const int64_t bucket = packet.bucket == 0 ? 0 : packet.at[i] / packet.bucket;
      packet.x[i] = static_cast<float>(static_cast<double>(norm[static_cast<size_t>(bucket)]) *
                                       level[i] / static_cast<double>(packet.steps));
    } else if (packet.form == Form::powers) {
      level[i] = static_cast<int16_t>(random.within(-160, 160));
      packet.x[i] = power_value(scale, level[i]);
    } else {
      packet.x[i] = minus ? -scale : scale;
      bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | minus << i % 8);
    }
  }
  const bool of_bits = packet.form == Form::signs || packet.form == Form::sparse_signs;
  const bool of_words = packet.form == Form::levels || packet.form == Form::powers;
  if (packet.form != Form::ternary && packet.form != Form::powers && !of_bits) packet.scale = 0;
  packet.value = of_bits || packet.form == Form::codes ? tensor_of(bits)
                 : of_words                            ? tensor_of(level)
                                                       : tensor_of(packet.x);
  packet.norms = tensor_of(norm);
  return packet;
}

// The packets' parts as lists, one for each argument.
struct Lists {
  Tensors index, value;
  std::optional<Tensors> norms{Tensors()};
  Doubles scale;
  Numbers steps, bucket, table;

  explicit Lists(const std::vector<Packet>& packets) {
    for (const Packet& each : packets) {
      index.push_back(each.index);
      value.push_back(each.value);
      norms->push_back(each.norms);
      scale.push_back(each.scale);
      steps.push_back(each.steps);
      bucket.push_back(each.bucket);
      table.push_back(each.table);
    }
  }
};

// Makes one thing wrong. Nothing is expected of the answer then, but that memory is left alone.
void spoil(Random* random, Lists* lists, int64_t* numel) {
  const auto m = static_cast<int64_t>(lists->index.size());
  if (m == 0) return;
  const auto i = static_cast<size_t>(random->below(m));
  switch (random->below(9)) {
    case 0:
    case 1: {  // an index
      Tensor& index = lists->index[i];
      if (index.numel() == 0) return;
      const int64_t at = random->below(index.numel());
      if (index.scalar_type() == ScalarType::Long) {
        auto* own = index.mutable_data_ptr<int64_t>();
        own[at] = wrong_number(random, own[at]);
      } else {
        auto* own = index.mutable_data_ptr<int32_t>();
        own[at] = static_cast<int32_t>(wrong_number(random, own[at]));
      }
      return;
    }
    case 2:
      *numel = wrong_number(random, *numel);
      return;
    case 3:
      lists->steps[i] = wrong_number(random, lists->steps[i]);
      return;
    case 4:
      lists->bucket[i] = wrong_number(random, lists->bucket[i]);
      return;
    case 5: {
      const auto j = static_cast<size_t>(random->below(m));
      std::swap(lists->value[i], lists->value[j]);
      return;
    }
    case 6:
      lists->scale[i] = random->once_in(2) ? NAN : -1;
      return;
    case 7:
      lists->table[i] = wrong_number(random, lists->table[i]);
      return;
    default:
      random->once_in(2) ? lists->norms.reset() : lists->index.pop_back();
  }
}

void expect_floats(const Optional& got, const std::vector<float>& want, const char* what) {
  if (!got.has_value()) broken(what);
  const auto* data = got->const_data_ptr<float>();
  for (size_t i = 0; i < want.size(); ++i)
    if (!(data[i] == want[i])) broken(what);
}

// Calls visit(e, x) for every element that a packet holds.
template <class Visit>
void each_of(const Packet& packet, const Visit& visit) {
  for (size_t i = 0; i < packet.x.size(); ++i)
    visit(packet.dense ? i : static_cast<size_t>(packet.at[i]), packet.x[i]);
}

void run_combine(Choices* choices, const std::vector<Packet>& packets, Lists lists, int64_t numel,
                 bool right) {
  Doubles weights;
  for (size_t i = 0; i < packets.size(); ++i)
    weights.push_back(static_cast<double>(choices->random.finite(false)));
  const Optional got = twice([&] {
    return find_operator<Combine>("combine")(lists.index, lists.value, weights, numel, lists.scale,
                                             lists.norms, lists.steps, lists.bucket, lists.table);
  });
  if (!right) return;
  Doubles sum(static_cast<size_t>(numel));
  for (size_t i = 0; i < packets.size(); ++i)
    each_of(packets[i], [&](size_t e, float x) { sum[e] += weights[i] * static_cast<double>(x); });
  expect_floats(got, std::vector<float>(sum.begin(), sum.end()), "combine: a wrong sum");
}

void run_trimmed(Choices* choices, const std::vector<Packet>& packets, Lists lists, int64_t numel,
                 bool right) {
  const auto m = static_cast<int64_t>(packets.size());
  const int64_t drop = m == 0 ? 0 : choices->below((m + 1) / 2);
  const Optional got = twice([&] {
    return find_operator<TrimmedMean>("trimmed_mean")(lists.index, lists.value, drop, numel,
                                                      lists.scale, lists.norms, lists.steps,
                                                      lists.bucket, lists.table);
  });
  if (!right || m == 0) return;
  std::vector<std::vector<float>> held(static_cast<size_t>(numel));
  for (const Packet& packet : packets)
    each_of(packet, [&](size_t e, float x) { held[e].push_back(x + 0.0f); });
  std::vector<float> want;
  for (std::vector<float>& each : held) {
    each.resize(static_cast<size_t>(m));
    std::sort(each.begin(), each.end());
    double sum = 0;
    for (int64_t i = drop; i < m - drop; ++i)
      sum += static_cast<double>(each[static_cast<size_t>(i)]);
    want.push_back(static_cast<float>(sum / static_cast<double>(m - 2 * drop)));
  }
  expect_floats(got, want, "trimmed_mean: a wrong mean");
}

void run_gram(const std::vector<Packet>& packets, Lists lists, int64_t numel, bool right) {
  const Optional got = twice([&] {
    return find_operator<Gram>("gram")(lists.index, lists.value, lists.scale, numel, lists.norms,
                                       lists.steps, lists.bucket, lists.table);
  });
  if (!right) return;
  if (!got.has_value()) broken("gram: refused");
  const auto* dots = got->const_data_ptr<double>();
  const size_t m = packets.size();
  for (size_t i = 0; i < m; ++i)
    for (size_t j = i; j < m; ++j) {
      const Packet &a = packets[i], &b = packets[j];
      double dot = 0, size = 0;
      for (size_t s = 0, t = 0; s < a.x.size() && t < b.x.size();) {
        const int64_t at = a.dense ? static_cast<int64_t>(s) : a.at[s];
        const int64_t other = b.dense ? static_cast<int64_t>(t) : b.at[t];
        if (at == other) {
          const double product = static_cast<double>(a.x[s]) * static_cast<double>(b.x[t]);
          dot += product;
          size += std::fabs(product);
        }
        s += at <= other, t += other <= at;
      }
      const double made = dots[i * m + j];
      if (made != dots[j * m + i] || !(std::fabs(made - dot) <= 1e-9 * size))
        broken("gram: a wrong product");
    }
}

void run_vote(Choices* choices, const std::vector<Packet>& packets, Lists lists, int64_t numel,
              bool right) {
  Tensors planes, index, value;
  for (size_t i = 0; i < packets.size(); ++i) {
    if (i >= lists.index.size()) break;
    if (packets[i].form == Form::signs) {
      planes.push_back(lists.value[i]);
    } else {
      index.push_back(lists.index[i]);
      value.push_back(packets[i].form == Form::floats || packets[i].form == Form::ternary
                          ? lists.value[i]
                          : tensor_of(packets[i].x));
    }
  }
  for (const Packet& packet : packets)
    right = right && (!packet.dense || packet.form == Form::signs);
  const double scale = choices->once_in(9) ? 0 : 0.5;
  const Optional got =
      twice([&] { return find_operator<Vote>("vote")(planes, index, value, scale, numel); });
  if (!right || packets.empty()) return;
  std::vector<int> votes(static_cast<size_t>(numel));
  for (const Packet& packet : packets)
    each_of(packet, [&](size_t e, float x) {
      votes[e] += packet.form == Form::signs ? (std::signbit(x) ? -1 : 1) : (x > 0) - (x < 0);
    });
  std::vector<float> want;
  for (const int each : votes)
    want.push_back(static_cast<float>(scale) * static_cast<float>((each > 0) - (each < 0)));
  expect_floats(got, want, "vote: a wrong sign");
}

// Onto tensors of their own, or all onto one.
void run_add(Choices* choices, const std::vector<Packet>& packets, Lists lists, int64_t numel,
             bool right) {
  const bool one = choices->once_in(2);
  if (numel < 0 || numel > 100000) return;
  Tensors dense;
  const auto run = [&]() -> Tensor {
    dense.clear();
    for (size_t i = 0; i < lists.index.size(); ++i)
      dense.push_back(one && i > 0 ? dense[0]
                                   : tensor_of(std::vector<float>(static_cast<size_t>(numel), 1)));
    find_operator<AddMany>("combine_add_many_")(dense, lists.index, lists.value, -0.5);
    std::vector<float> all;
    for (const Tensor& each : dense)
      all.insert(all.end(), each.const_data_ptr<float>(), each.const_data_ptr<float>() + numel);
    return tensor_of(all);
  };
  const Optional got = twice(run);
  for (const Packet& packet : packets)
    right = right && (packet.form == Form::dense || packet.form == Form::floats ||
                      packet.form == Form::ternary);
  if (!right) return;
  std::vector<float> want, sum(static_cast<size_t>(numel), 1);
  for (const Packet& packet : packets) {
    if (!one) std::fill(sum.begin(), sum.end(), 1);
    each_of(packet, [&](size_t e, float x) { sum[e] += -0.5f * x; });
    if (!one) want.insert(want.end(), sum.begin(), sum.end());
  }
  for (size_t i = 0; one && i < packets.size(); ++i)
    want.insert(want.end(), sum.begin(), sum.end());
  expect_floats(got, want, "combine_add_many_: a wrong sum");
}

void run_project(Choices* choices) {
  Random& random = choices->random;
  const int64_t size = 1 + choices->below(40), m = choices->below(size + 2);
  Doubles dots(static_cast<size_t>(size * size));
  const bool wild = choices->once_in(3);
  for (double& each : dots) each = static_cast<double>(random.finite(wild));
  if (wild && random.once_in(2)) dots[static_cast<size_t>(random.below(size * size))] = NAN;
  Numbers first, last;
  for (int64_t i = choices->below(4); i > 0; --i) {
    first.push_back(random.below(size + 1));
    last.push_back(random.once_in(9) ? wrong_number(&random, size)
                                     : random.within(first.back(), size));
  }
  Tensor square = torch::stable::empty({size, size}, ScalarType::Double);
  std::memcpy(square.mutable_data_ptr(), dots.data(), sizeof(double) * dots.size());
  const int64_t kept = choices->below(m + 2);
  twice([&] { return find_operator<Project>("project")(square, m, kept, first, last); });
}

}  // namespace

void run_aggregate(const Bytes& bytes) {
  Choices choices(bytes);
  torch::stable::threads().real = false;
  const int64_t which = choices.below(12);
  if (which == 10) return run_project(&choices);
  if (which == 11) return run_values(&choices);
  constexpr int64_t kSizes[] = {0, 1, 63, 64, 511, 513, 8191, 16384, 16385, 40000, 70001};
  int64_t numel = choices.once_in(20) ? kSizes[choices.below(11)] : choices.below(700);
  const bool gram = which == 2 || which == 3;
  const bool huge = gram && choices.once_in(12);
  if (huge) numel = choices.once_in(2) ? int64_t{1} << 31 : (int64_t{1} << 45) + 7;
  const int64_t m = numel < 600 && choices.once_in(12) ? 70 : choices.below(7);
  std::vector<Packet> packets;
  const bool coded = which < 6 || choices.once_in(2);
  const bool ternary = choices.once_in(3);
  for (int64_t i = 0; i < m; ++i)
    packets.push_back(make_packet(&choices, numel, coded && !ternary, huge || ternary));
  Lists lists(packets);
  const bool right = !choices.once_in(5);
  if (!right) spoil(&choices.random, &lists, &numel);
  if (gram) return run_gram(packets, lists, numel, right);
  if (which < 2) return run_combine(&choices, packets, lists, numel, right);
  if (which < 6) return run_trimmed(&choices, packets, lists, numel, right);
  if (which < 8) return run_vote(&choices, packets, lists, numel, right);
  run_add(&choices, packets, lists, numel, right);
}

}  // namespace gcext::fuzz
