// Argument checks that the CPU and CUDA operators share.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "../bits.h"
#include "../codes.h"
#include "packet_view.h"
#include "source.h"
#include "stable.h"

namespace gcext {

// What is to be compressed, a*tensor + b*memory. No memory beside an out: out is updated in place,
// and is the memory too. halves: whether the kernel takes a tensor of 16-bit floats, on the CPU,
// where it does not update a memory in place.
inline HostSource source_args(const char* op, const Tensor& tensor,
                              const std::optional<Tensor>& memory, const std::optional<Tensor>& out,
                              double a, double b, bool halves = false) {
  const std::string name(op);
  const ScalarType dtype = tensor.scalar_type();
  const bool brain = dtype == ScalarType::BFloat16;
  const bool half = halves && !tensor.is_cuda() && (brain || dtype == ScalarType::Half);
  check_dense(tensor, half ? dtype : ScalarType::Float, (name + ": tensor").c_str());
  GCEXT_CHECK(!half || !out.has_value() || memory.has_value(), op,
              ": a tensor of 16 bits needs a memory apart from out. Convert it.");
  for (const auto* each : {&memory, &out}) {
    if (!each->has_value()) continue;
    check_dense(**each, ScalarType::Float, (name + ": memory and out").c_str());
    GCEXT_CHECK((*each)->numel() == tensor.numel(), op, ": memory and out must have ",
                tensor.numel(), " elements like tensor, got ", (*each)->numel(), ".");
  }
  GCEXT_CHECK(out.has_value() || !memory.has_value(), op,
              ": memory needs out. Pass where the new one goes.");
  HostSource source{{half ? nullptr : tensor.const_data_ptr<float>(), nullptr, nullptr,
                     static_cast<float>(a), static_cast<float>(b)}};
  if (half) source.half = {static_cast<const uint8_t*>(tensor.const_data_ptr()), brain};
  if (out.has_value()) {
    source.out = out->mutable_data_ptr<float>();
    source.memory = memory.has_value() ? memory->const_data_ptr<float>() : source.out;
  }
  return source;
}

struct SelectArgs {
  HostSource source;
  int64_t n, k;
  int64_t* next;  // int64[3], csrc/common/source.h; nullptr: what is sent is taken from out
  bool in_place;  // out is also the memory
  bool wide;      // indices are int64
};

inline void check_sent(const char* op, const Tensor& sent) {
  check_dense(sent, ScalarType::Long, (std::string(op) + ": sent and next").c_str());
  GCEXT_CHECK(sent.numel() == kSentSize, op, ": sent and next must have ", +kSentSize,
              " elements, got ", sent.numel(), ".");
}

// Gives the source what memory lacks. Returns where what is sent of out goes, which then is the
// sum; nullptr: nowhere.
inline int64_t* sent_args(const char* op, const std::optional<Tensor>& out,
                          const std::optional<Tensor>& sent, const std::optional<Tensor>& next,
                          Source& source) {
  GCEXT_CHECK(out.has_value() || !(sent.has_value() || next.has_value()), op,
              ": sent and next need out. Pass where the sum goes.");
  if (sent.has_value()) {
    check_sent(op, *sent);
    source.sent = sent->const_data_ptr<int64_t>();
  }
  if (!next.has_value()) return nullptr;
  check_sent(op, *next);
  return next->mutable_data_ptr<int64_t>();
}

inline SelectArgs select_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                              const std::optional<Tensor>& out, int64_t k, double a, double b,
                              const std::optional<Tensor>& sent,
                              const std::optional<Tensor>& next) {
  const int64_t n = tensor.numel();
  GCEXT_CHECK(k >= 0 && k <= n, "select: k must be in [0, numel], got ", k, " of ", n, ".");
  SelectArgs args{source_args("select", tensor, memory, out, a, b, true),
                  n,
                  k,
                  nullptr,
                  out.has_value() && !memory.has_value(),
                  n > INT32_MAX};
  args.next = sent_args("select", out, sent, next, args.source);
  return args;
}

// Raises where what one selection writes is read or written by another: they run in any order,
// several at once.
inline void check_apart(const std::vector<SelectArgs>& args) {
  struct Stretch {
    const float *first, *end;
    bool written;
  };
  std::vector<Stretch> stretches;
  stretches.reserve(3 * args.size());
  for (const SelectArgs& each : args) {
    const auto add = [&](const float* first, bool written) {
      if (first != nullptr && each.n > 0) stretches.push_back({first, first + each.n, written});
    };
    const HostSource& source = each.source;
    add(source.tensor, false);
    if (source.memory != source.out) add(source.memory, false);
    add(source.out, true);
  }
  std::sort(stretches.begin(), stretches.end(),
            [](const Stretch& x, const Stretch& y) { return std::less<>()(x.first, y.first); });
  const float *read = nullptr, *written = nullptr;  // where what was passed so far ends
  for (const Stretch& each : stretches) {
    const bool apart =
        !std::less<>()(each.first, written) && !(each.written && std::less<>()(each.first, read));
    GCEXT_CHECK(apart, "select_many: memory and out must not share memory with other tensors.");
    const float*& end = each.written ? written : read;
    end = std::max(end, each.end, std::less<>());
  }
}

// Many: memory, sent, out and next have an entry for every tensor, or none at all.
inline std::vector<SelectArgs> select_args(const std::vector<Tensor>& tensor,
                                           const std::vector<Tensor>& memory,
                                           const std::vector<Tensor>& out,
                                           const std::vector<int64_t>& k, double a, double b,
                                           const std::vector<Tensor>& sent,
                                           const std::vector<Tensor>& next) {
  const size_t m = tensor.size();
  GCEXT_CHECK(m > 0 && k.size() == m, "select_many: needs a k for every tensor, got ", k.size(),
              " for ", m, ".");
  for (const auto* each : {&memory, &sent, &out, &next})
    GCEXT_CHECK(each->empty() || each->size() == m,
                "select_many: memory, sent, out and next must have an entry for every tensor or "
                "none, got ",
                each->size(), " for ", m, ".");
  std::vector<SelectArgs> args;
  args.reserve(m);
  for (size_t i = 0; i < m; ++i) {
    const auto at = [&](const std::vector<Tensor>& from) {
      return from.empty() ? std::nullopt : std::optional<Tensor>(from[i]);
    };
    args.push_back(select_args(tensor[i], at(memory), at(out), k[i], a, b, at(sent), at(next)));
    GCEXT_CHECK(!args[i].wide, "select_many: a tensor must have less than 2^31 elements, got ",
                args[i].n, ". Select it alone.");
  }
  check_apart(args);
  return args;
}

inline int64_t total_k(const std::vector<SelectArgs>& args) {
  int64_t sum = 0;
  for (const SelectArgs& each : args) sum += each.k;
  return sum;
}

inline HostSource quantize_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                                const std::optional<Tensor>& out, double decay) {
  GCEXT_CHECK(tensor.numel() < int64_t{1} << 39,
              "quantize: tensor must have less than 2^39 elements, got ", tensor.numel(),
              ". Encode in parts.");
  return source_args("quantize", tensor, memory, out, 1, decay, true);
}

// The source of an operator that may leave the sum in out, and what was sent of it in next. In
// place nothing may be written before all is validated, so there is no next.
inline HostSource kept_source(const char* op, HostSource source,
                              const std::optional<Tensor>& memory, const std::optional<Tensor>& out,
                              const std::optional<Tensor>& sent, const std::optional<Tensor>& next,
                              int64_t*& next_at) {
  next_at = sent_args(op, out, sent, next, source);
  GCEXT_CHECK(next_at == nullptr || memory.has_value(), op,
              ": next needs memory apart from out. Pass two slots.");
  return source;
}

inline HostSource sign_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                            const std::optional<Tensor>& out, double decay,
                            const std::optional<Tensor>& sent, const std::optional<Tensor>& next,
                            int64_t*& next_at) {
  const HostSource source = quantize_args(tensor, memory, out, decay);
  return kept_source("sign", source, memory, out, sent, next, next_at);
}

// scale: of a ternary packet its magnitude, else 0.
inline void check_gram_scale(double scale, bool dense) {
  GCEXT_CHECK(std::isfinite(scale) && scale >= 0,
              "gram: a scale must be finite and not negative, got ", scale,
              ". Pass 0 for a packet that is not ternary.");
  GCEXT_CHECK(scale == 0 || !dense, "gram: a dense packet has no scale, got ", scale, ". Pass 0.");
}

// The info of combine_add_, which adds nothing where that reports an error; nullptr without one.
inline const int64_t* add_info(const std::optional<Tensor>& info) {
  if (!info.has_value()) return nullptr;
  check_dense(*info, ScalarType::Long, "combine_add_: info");
  GCEXT_CHECK(info->numel() == kInfoSize, "combine_add_: info must be an encoder's, got ",
              info->numel(), " numbers.");
  return info->const_data_ptr<int64_t>();
}

// What threshold takes; limit is a key, on the tensor's device.
inline HostSource threshold_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                                 const std::optional<Tensor>& out, double decay,
                                 const Tensor& limit, int64_t scale,
                                 const std::optional<Tensor>& sent,
                                 const std::optional<Tensor>& next, int64_t*& next_at) {
  check_dense(limit, ScalarType::Int, "threshold: limit");
  GCEXT_CHECK(limit.numel() == 1, "threshold: limit must be one number, got ", limit.numel(), ".");
  GCEXT_CHECK(scale >= 0 && scale < int64_t{kInfKey},
              "threshold: scale must be the bits of a finite float32 that is not negative, got ",
              scale, ".");
  const HostSource source = source_args("threshold", tensor, memory, out, 1, decay, true);
  return kept_source("threshold", source, memory, out, sent, next, next_at);
}

inline HostSource wangni_args(const Tensor& tensor, const std::optional<Tensor>& memory,
                              const std::optional<Tensor>& out, double decay, double budget) {
  const int64_t n = tensor.numel();
  GCEXT_CHECK(n < int64_t{1} << 39, "wangni: tensor must have less than 2^39 elements, got ", n,
              ". Encode in parts.");
  GCEXT_CHECK(budget > 0 && budget <= static_cast<double>(std::max<int64_t>(n, 1)),
              "wangni: budget must be in (0, numel], got ", budget, " of ", n, ".");
  return source_args("wangni", tensor, memory, out, 1, decay, true);
}

inline void check_levels(int64_t steps, int64_t bucket) {
  GCEXT_CHECK(steps >= 1 && steps < 1 << 15, "quantize: steps must be in [1, 2^15), got ", steps,
              ". Use fewer bits.");
  GCEXT_CHECK(bucket >= 0, "quantize: bucket must not be negative, got ", bucket,
              ". 0 is one for all.");
}

inline void check_encode_codes(int64_t table, int64_t width, int64_t bucket, bool random,
                               bool fit) {
  GCEXT_CHECK(table >= 0 && table < kCodeTables, "encode_codes: table must be in [0, ", kCodeTables,
              "), got ", table, ".");
  const CodeTable kind = static_cast<CodeTable>(table);
  GCEXT_CHECK(kind == CodeTable::kValues ? width == 1 : width_fits(kind, width),
              "encode_codes: width must be one that the table has, got ", width, ".");
  GCEXT_CHECK(bucket >= 0, "encode_codes: bucket must not be negative, got ", bucket, ".");
  GCEXT_CHECK(kind == CodeTable::kUniform || !(random || fit),
              "encode_codes: table must be uniform for random and fit, got ", table, ".");
}

// Sign bits of n values. scales: one for each `run` of them, a multiple of 8.
inline void check_signs(const Tensor& bits, int64_t n, const std::optional<Tensor>& scales,
                        int64_t run) {
  check_dense(bits, ScalarType::Byte, "unpack_signs: bits");
  GCEXT_CHECK(n >= 0 && bits.numel() == n / 8 + (n % 8 != 0),
              "unpack_signs: bits must be one for each value, got ", bits.numel(), " bytes for ", n,
              ".");
  if (!scales.has_value()) return;
  check_dense(*scales, ScalarType::Float, "unpack_signs: scales");
  GCEXT_CHECK(n == 0 || (run > 0 && run % 8 == 0 && (n - 1) / run < scales->numel()),
              "unpack_signs: scales must be one for each run of a multiple of 8 values, got ",
              scales->numel(), " for runs of ", run, ".");
}

// bucket: elements that share a norm; 0 where one serves all.
inline void check_level_values(const Tensor& norms, const Tensor& at, const Tensor& level,
                               int64_t bucket, int64_t steps) {
  check_levels(steps, bucket);
  const bool wide = at.scalar_type() == ScalarType::Long;
  check_dense(norms, ScalarType::Float, "level_values: norms");
  check_dense(at, wide ? ScalarType::Long : ScalarType::Int, "level_values: at");
  check_dense(level, ScalarType::Short, "level_values: level");
  GCEXT_CHECK(at.numel() == level.numel(), "level_values: at must name every level, got ",
              at.numel(), " for ", level.numel(), ".");
}

// The scale of what natural compression sends, as float32.
inline float check_natural_scale(double scale) {
  const float rounded = static_cast<float>(scale);
  GCEXT_CHECK(rounded > 0 && rounded <= 1, "natural: scale must be in (0, 1], got ", scale, ".");
  return rounded;
}

// The scale as float32; to be called where denormals are kept.
inline float check_power_values(const Tensor& power, double scale) {
  check_dense(power, ScalarType::Short, "power_values: power");
  const float rounded = static_cast<float>(scale);
  GCEXT_CHECK(rounded > 0 && std::isfinite(rounded),
              "power_values: scale must be positive and finite, got ", scale, ".");
  return rounded;
}

// Codes of n elements, csrc/codes.h.
inline void check_code_values(const Tensor& bits, const Tensor& scales, int64_t n, int64_t table,
                              int64_t width, int64_t bucket) {
  GCEXT_CHECK(table >= 0 && table < kCodeTables, "code_values: table must be in [0, ", kCodeTables,
              "), got ", table, ".");
  const CodeTable kind = static_cast<CodeTable>(table);
  GCEXT_CHECK(width_fits(kind, width), "code_values: width must be one that the table has, got ",
              width, ".");
  GCEXT_CHECK(n >= 0 && n < int64_t{1} << 59, "code_values: n must be in [0, 2^59), got ", n, ".");
  GCEXT_CHECK(bucket >= 0, "code_values: bucket must not be negative, got ", bucket, ".");
  check_dense(bits, ScalarType::Byte, "code_values: bits");
  check_dense(scales, ScalarType::Float, "code_values: scales");
  GCEXT_CHECK(bits.numel() == n * width / 8 + (n * width % 8 != 0), "code_values: bits must be ",
              width, " for each value, got ", bits.numel(), " bytes for ", n, ".");
  const int64_t each = floats_per_bucket(kind, static_cast<int>(width));
  const int64_t buckets = bucket_count(n, bucket);
  GCEXT_CHECK(each == 0 || scales.numel() / each >= buckets, "code_values: scales must be ", each,
              " for each of ", buckets, " buckets, got ", scales.numel(), ".");
}

// The voters of csrc/vote.h: planes of sign bits, and sparse packets.
inline void check_vote(const std::vector<Tensor>& plane, const std::vector<PacketView>& packets,
                       double scale, int64_t numel) {
  for (const PacketView& packet : packets)
    GCEXT_CHECK(!packet.dense,
                "vote: a packet without indices has no signs of its own. "
                "Pass its plane of sign bits.");
  for (const Tensor& bits : plane) {
    check_dense(bits, ScalarType::Byte, "vote: plane");
    GCEXT_CHECK(bits.numel() == plane_bytes(numel, 1), "vote: a plane must have a bit an element, ",
                plane_bytes(numel, 1), " bytes, got ", bits.numel(), ".");
  }
  GCEXT_CHECK(!plane.empty() || !packets.empty(), "vote: needs at least one voter, got none.");
  GCEXT_CHECK(std::isfinite(static_cast<float>(scale)),
              "vote: scale must be finite in float32, got ", scale, ".");
}

inline void check_drop(int64_t drop, size_t packets) {
  GCEXT_CHECK(drop >= 0 && 2 * drop < static_cast<int64_t>(packets),
              "trimmed_mean: drop must be in [0, m/2), got ", drop, " of ", packets, " packets.");
}

}  // namespace gcext
