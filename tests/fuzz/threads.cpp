// Every CPU operator and the streams of messages on real threads, for ThreadSanitizer: several
// callers at once, each with parallel loops of its own, must make the bytes that one thread makes.
//
//   threads [ROUNDS]
#include <cmath>
#include <cstdio>
#include <functional>
#include <thread>

#include "operators.h"
#include "wire/lender.h"
#include "wire/levels2.h"
#include "wire/powers.h"

extern "C" {
int64_t gcext_threads();
void gcext_run(int64_t parts, void (*body)(void*, int64_t), void* context);
}

namespace gcext::fuzz {

void broken(const char* what) {
  std::fprintf(stderr, "threads: %s\n", what);
  std::abort();
}

namespace {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Memory = const Optional&;
using Sign = Two(const Tensor&, Memory, Memory, double, Memory, Memory);
using Levels = Four(const Tensor&, Memory, Memory, double, int64_t, int64_t, bool, double, bool,
                    int64_t);
using EncodeCodes = Three(const Tensor&, Memory, Memory, double, int64_t, int64_t, int64_t, bool,
                          bool, int64_t);
using Natural = Two(const Tensor&, Memory, Memory, double, double, int64_t);
using Select = Three(const Tensor&, Memory, Memory, int64_t, double, double, bool, Memory, Memory);
using SelectMany = Three(const Tensors&, const Tensors&, const Tensors&, const Numbers&, double,
                         double, bool, const Tensors&, const Tensors&);
using SelectModel = Three(const Tensors&, const Tensors&, const Tensors&, int64_t, double, double,
                          bool, const Tensors&, const Tensors&);
using SelectChunks = Three(const Tensor&, Memory, Memory, int64_t, int64_t, int64_t, double, double,
                           bool);
using Adacomp = Three(const Tensor&, Memory, Memory, double, int64_t);
using Threshold = Three(const Tensor&, Memory, Memory, double, const Tensor&, int64_t, Memory,
                        Memory);
using Wangni = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, Memory,
                                                                          Memory, double, double,
                                                                          int64_t);
using BinMeans = Two(const Tensor&, const Tensor&, const Tensor&, Memory, int64_t, double);
using DctSelect = Three(const Tensor&, Memory, Memory, double, int64_t, int64_t, int64_t, int64_t,
                        bool);
using Rotate = Two(const Tensor&, int64_t, int64_t, int64_t);
using RotateScale = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const Tensor&, int64_t);
using RotateFit = Two(const Tensor&, const Tensor&, const Tensor&, int64_t, int64_t, int64_t);
using RotateBack = Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t, int64_t);
using Sketch = Two(const Tensor&, const Optional&, int64_t, int64_t, int64_t);
using PolarEncode = Three(const Tensor&, const Tensor&, int64_t, int64_t, double, int64_t, bool);
using PolarDecode = Tensor(const Tensor&, const Tensor&, int64_t);
using PolarBits = Tensor(const Tensor&);
using PolarSymbols = Tensor(const Tensor&, int64_t);
using RandomSupport = Tensor(int64_t, int64_t, int64_t);

constexpr int64_t kRows = 512, kCols = 400, kNumel = kRows * kCols;

std::vector<uint8_t> bytes_of(const Tensor& tensor) {
  const auto* first = static_cast<const uint8_t*>(tensor.const_data_ptr());
  const int64_t bytes = tensor.numel() * size_of(tensor.scalar_type());
  return bytes > 0 ? std::vector<uint8_t>(first, first + bytes) : std::vector<uint8_t>();
}

using Bytes2 = std::vector<std::vector<uint8_t>>;

template <class... Parts>
void keep(Bytes2* all, const std::tuple<Parts...>& parts) {
  std::apply([&](const auto&... each) { (all->push_back(bytes_of(each)), ...); }, parts);
}
void keep(Bytes2* all, const Tensor& tensor) { all->push_back(bytes_of(tensor)); }

void keep_rotations(const Tensor& x, int64_t key, Bytes2* made) {
  const Two turned = find_operator<Rotate>("rotate")(x, 1 << 14, 64, key);
  keep(made, turned);
  const auto& [y, norm] = turned;
  const Tensor negative = find_operator<PolarBits>("polar_pack")(
      tensor_of(std::vector<uint8_t>(static_cast<size_t>(y.numel()), 1)));
  const Tensor scale = find_operator<RotateScale>("rotate_scale")(
      y, negative, norm, tensor_of(std::vector<int64_t>{-1}), tensor_of(std::vector<int64_t>(4, 0)),
      1 << 14);
  keep(made, scale);
  keep(made, find_operator<RotateFit>("rotate_fit")(x, negative, scale, 1 << 14, 64, key));
  keep(made, find_operator<RotateBack>("rotate_back")(negative, scale, kNumel, 1 << 14, 64, key));
}

// A body whose fields begin behind the support, as they lie in a message.
struct Fields {
  std::vector<uint8_t> bytes;
  wire::Body body;

  explicit Fields(const wire::Message& message) : bytes(static_cast<size_t>(message.bytes()) + 8) {
    message.write(bytes.data());
    body.k = body.numel = kNumel;
  }
  wire::Cursor cursor() const {
    return {bytes.data(), bytes.data(), bytes.data() + bytes.size() - 8};
  }
};

template <class T>
void keep(Bytes2* made, const std::vector<T>& values) {
  const auto* first = reinterpret_cast<const uint8_t*>(values.data());
  made->emplace_back(first, first + values.size() * sizeof(T));
}

// Written, checked and read.
void keep_messages(Random* random, Bytes2* made) {
  std::vector<int16_t> power(kNumel), level;
  std::vector<int32_t> at;
  for (int64_t i = 0; i < kNumel; ++i) {
    const auto own = static_cast<int16_t>(random->within(-3, 3));
    power[static_cast<size_t>(i)] = own;
    if (own == 0) continue;
    at.push_back(static_cast<int32_t>(i));
    level.push_back(own);
  }
  wire::Message powers, levels;
  wire::put_powers(&powers, kNumel, 1, power.data(), kNumel);
  Fields first(powers);
  wire::Cursor cursor = first.cursor();
  wire::take_powers(&cursor, &first.body);
  wire::check_powers(first.body, cursor);
  std::vector<int16_t> back(kNumel);
  wire::read_powers(first.body, cursor, back.data());
  if (back != power) broken("powers: other numbers");

  const float norm = 1;
  const auto places = static_cast<int64_t>(at.size());
  wire::put_levels2(&levels, kNumel, {3, 0, &norm, 1, level.data(), places}, at.data(), places);
  Fields second(levels);
  cursor = second.cursor();
  wire::take_levels2(&cursor, &second.body);
  wire::check_levels2(second.body, cursor);
  std::vector<int32_t> at_back(at.size());
  std::vector<int16_t> level_back(at.size());
  wire::read_levels2(second.body, cursor, at_back.data(), level_back.data());
  if (at_back != at || level_back != level) broken("levels2: other numbers");
  wire::Message section;
  section.own(wire::pack_section(at.data(), places, kNumel));
  Fields third(section);
  cursor = third.cursor();
  wire::Section taken;
  wire::take_section(&cursor, places, &taken);
  wire::check_section(taken, kNumel, cursor);
  wire::read_section(taken, kNumel, cursor, at_back.data());
  if (at_back != at) broken("section: other numbers");
  keep(made, first.bytes);
  keep(made, second.bytes);
  keep(made, third.bytes);
}

// Everything that the operators make of one tensor, in one order.
Bytes2 everything(uint64_t seed) {
  Random random(seed);
  std::vector<float> values(kNumel);
  for (float& each : values) each = random.finite(false);
  const Tensor x = tensor_of(values), memory = tensor_of(std::vector<float>(kNumel, 0.25f));
  const Optional none;
  const int64_t key = static_cast<int64_t>(random.next());
  Bytes2 made;
  const auto out = [&] { return Optional(tensor_of(std::vector<float>(kNumel, 0.125f))); };
  const auto with_residual = [&](const auto& run) {
    const Optional residual = out();
    keep(&made, run(Optional(memory), residual));
    keep(&made, *residual);
    const Optional in_place = out();
    keep(&made, run(none, in_place));
    keep(&made, *in_place);
  };

  with_residual([&](Memory m, Memory o) {
    return find_operator<Select>("select")(x, m, o, kNumel / 50, 1, 1, true, none, none);
  });
  // Of a memory of which the first half was sent.
  const Optional lacks = tensor_of(std::vector<int64_t>{0x3e800000, kNumel / 2, 0x3e000000});
  const Optional sum = out(), next = tensor_of(std::vector<int64_t>(3));
  keep(&made, find_operator<Select>("select")(x, Optional(memory), sum, kNumel / 9, 1, 1, true,
                                              lacks, next));
  keep(&made, *sum);
  keep(&made, *next);
  keep(&made, find_operator<Sign>("sign")(x, Optional(memory), sum, 1, lacks, next));
  keep(&made, *sum);
  keep(&made, *next);
  with_residual([&](Memory m, Memory o) {
    return find_operator<SelectChunks>("select_chunks")(x, m, o, 1000, 10, 8, 1, 1, false);
  });
  with_residual(
      [&](Memory m, Memory o) { return find_operator<Adacomp>("adacomp")(x, m, o, 1, 500); });
  const Tensor limit = tensor_of(std::vector<int32_t>{0x3f800000});
  with_residual([&](Memory m, Memory o) {
    return find_operator<Threshold>("threshold")(x, m, o, 1, limit, 0x3f800000, none, none);
  });
  with_residual([&](Memory m, Memory o) {
    return find_operator<Wangni>("wangni")(x, m, o, 1, kNumel / 50, key);
  });
  with_residual(
      [&](Memory m, Memory o) { return find_operator<Sign>("sign")(x, m, o, 1, none, none); });
  with_residual([&](Memory m, Memory o) {
    return find_operator<Levels>("levels")(x, m, o, 1, 7, 512, false, 0, false, key);
  });
  with_residual([&](Memory m, Memory o) {
    return find_operator<EncodeCodes>("encode_codes")(x, m, o, 1, 1, 4, 1024, true, false, key);
  });
  with_residual(
      [&](Memory m, Memory o) { return find_operator<Natural>("natural")(x, m, o, 1, 1, key); });
  with_residual([&](Memory m, Memory o) {
    return find_operator<DctSelect>("dct_select")(x, m, o, 1, kRows, kCols, 64, 32, true);
  });
  const std::vector<float> half(values.begin(), values.begin() + kNumel / 2);
  const Tensors two{x, tensor_of(half)};
  keep(&made,
       find_operator<SelectMany>("select_many")(two, {}, {}, {900, 500}, 1, 1, true, {}, {}));
  keep(&made, find_operator<SelectModel>("select_model")(two, {}, {}, 2000, 1, 1, false, {}, {}));
  keep(&made, find_operator<Sketch>("sketch")(x, none, 5, 4000, key));
  keep(&made, find_operator<RandomSupport>("random_support")(key, kNumel / 10, kNumel));
  std::vector<uint8_t> frozen(64, 1);
  for (size_t i = 32; i < 64; ++i) frozen[i] = 0;
  const Tensor set = tensor_of(frozen);
  const Three polar = find_operator<PolarEncode>("polar_encode")(x, set, 32, kNumel, 20, 0, true);
  keep(&made, polar);
  const Tensor packed = find_operator<PolarDecode>("polar_decode")(std::get<0>(polar), set, kNumel);
  keep(&made, packed);
  const Tensor symbols = find_operator<PolarSymbols>("polar_unpack")(packed, kNumel);
  keep(&made, find_operator<PolarBits>("polar_pack")(symbols));

  keep_rotations(x, key, &made);
  keep_messages(&random, &made);

  // Packets of these, to be aggregated.
  const Three sent =
      find_operator<Select>("select")(x, none, none, kNumel / 20, 1, 1, true, none, none);
  const Three more =
      find_operator<Select>("select")(memory, none, none, kNumel / 30, 1, 1, false, none, none);
  const Two signs = find_operator<Sign>("sign")(x, none, none, 1, none, none);
  const auto* info = std::get<2>(sent).const_data_ptr<int64_t>();
  const float scale = std::fabs(std::get<1>(sent).const_data_ptr<float>()[0]);
  if (info[0] != std::get<0>(sent).numel()) broken("select: another count");
  const Tensor empty_index = tensor_of(std::vector<int32_t>());
  const Tensors index{std::get<0>(sent), std::get<0>(more), empty_index, empty_index};
  const Tensors value{std::get<1>(sent), std::get<1>(more), std::get<0>(signs), x};
  const Doubles scales{static_cast<double>(scale), 0, 0.5, 0};
  const Numbers zeros(4), tables(4, -1);
  const std::optional<Tensors> norms;
  keep(&made, find_operator<Combine>("combine")(index, value, {1, 2, 3, 4}, kNumel, scales, norms,
                                                zeros, zeros, tables));
  const Tensor dots =
      find_operator<Gram>("gram")(index, value, scales, kNumel, norms, zeros, zeros, tables);
  keep(&made, dots);
  keep(&made, find_operator<TrimmedMean>("trimmed_mean")(index, value, 1, kNumel, scales, norms,
                                                         zeros, zeros, tables));
  keep(&made, find_operator<Vote>("vote")({std::get<0>(signs)}, {index[0], index[1]},
                                          {value[0], value[1]}, 1, kNumel));
  const Tensors dense{*out(), *out()};
  find_operator<AddMany>("combine_add_many_")(dense, {index[0], empty_index}, {value[0], x}, -1);
  keep(&made, dense[0]);
  keep(&made, dense[1]);
  keep(&made, find_operator<UnpackSigns>("unpack_signs")(std::get<0>(signs), kNumel, 0.5, none, 0));
  constexpr int64_t kUpdates = 300;
  Tensor square = torch::stable::empty({kUpdates, kUpdates}, ScalarType::Double);
  for (int64_t i = 0; i < kUpdates * kUpdates; ++i)
    square.mutable_data_ptr<double>()[i] = static_cast<double>(random.finite(false));
  keep(&made, find_operator<Project>("project")(square, 250, 3, {250}, {kUpdates}));
  return made;
}

}  // namespace
}  // namespace gcext::fuzz

int main(int argc, char** argv) {
  using namespace gcext::fuzz;
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 1;
  constexpr size_t kCallers = 3;
  gcext::wire::Lender lender;
  lender.threads = gcext_threads;
  lender.run = gcext_run;
  gcext::wire::set_lender(lender);
  for (int round = 0; round < rounds; ++round) {
    std::vector<Bytes2> alone(kCallers), together(kCallers);
    threads() = {1, false};
    for (size_t i = 0; i < kCallers; ++i) alone[i] = everything(i + 10 * round);
    threads() = {4, true};
    std::vector<std::thread> callers;
    for (size_t i = 0; i < kCallers; ++i)
      callers.emplace_back([&, i] { together[i] = everything(i + 10 * round); });
    for (std::thread& each : callers) each.join();
    if (alone != together) broken("other bytes on several threads");
    std::printf("threads: round %d, %zu results of %zu callers, alike\n", round, alone[0].size(),
                kCallers);
  }
  return 0;
}
