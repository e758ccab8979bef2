// Runs a target without libFuzzer: replays inputs, then makes new ones until the time or the runs
// are over. The same seed makes the same inputs.
//
//   fuzz TARGET [--seconds S] [--runs N] [--seed N] [--checksum repaired|left] [--save FILE]
//        [--crashes FOLDER] [--emit N] [INPUT ..]
//
// INPUT: a folder of messages, a message, or a list (.txt): a line "verdict hex" each, the message
// without its checksum; the verdict is held against the decoder's. --save writes such a list of the
// inputs that reached something new; --emit prints N inputs so, and runs none. An input that breaks
// the run is left in --crashes.
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "coverage.h"
#include "make.h"
#include "mutate.h"
#include "targets.h"

extern "C" {
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());
// Of g++, UndefinedBehaviorSanitizer has a library of its own, which calls no such function.
const char* __ubsan_default_options();
const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }
}

namespace gcext::fuzz {
namespace {

constexpr double kTooSlow = 2;  // seconds of the processor an input, sanitizers included
constexpr size_t kPool = 5000, kSaved = 1500;  // inputs; bytes of one that is saved

struct Options {
  const Target* target = nullptr;
  double seconds = 0;
  int64_t runs = 0, emit = 0;
  uint64_t seed = 1;
  Checksum checksum = Checksum::repaired;
  std::string save, crashes = ".";
  std::vector<std::string> inputs;
};

Options options;
const Bytes* running = nullptr;  // for the crash's file
int64_t executed = 0;

void leave_input() {
  if (running == nullptr) return;
  const Bytes input = *running;
  running = nullptr;
  const auto size = static_cast<int64_t>(input.size());
  const std::string path = options.crashes + "/" + options.target->name + "-" +
                           std::to_string(digest(input.data(), size)) + ".crash";
  if (std::FILE* file = std::fopen(path.c_str(), "wb")) {
    std::fwrite(input.data(), 1, input.size(), file);
    std::fclose(file);
  }
  std::fprintf(stderr, "fuzz: run %lld of %s, seed %llu, left its input in %s\n",
               static_cast<long long>(executed), options.target->name,
               static_cast<unsigned long long>(options.seed), path.c_str());
}

[[noreturn]] void usage(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::exit(2);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of the processor: other programs run, too.
double used() {
  timespec time;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double slowest = 0;

void execute(const Bytes& input) {
  running = &input;
  alarm(60);
  const double begin = used();
  options.target->run(input);
  const double took = used() - begin;
  ++executed;
  slowest = std::max(slowest, took);
  if (took > kTooSlow) broken("too slow");
  running = nullptr;
}

struct Input {
  Bytes bytes;
  std::string verdict;  // empty: unknown
};

// Files by C's functions: those of C++ are in a library that MemorySanitizer does not see into.
std::string text_of(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) usage("no such input: " + path);
  char piece[4096];
  while (const size_t n = std::fread(piece, 1, sizeof piece, file)) text.append(piece, n);
  std::fclose(file);
  return text;
}

Bytes bytes_of(const std::string& path) {
  const std::string text = text_of(path);
  return Bytes(text.begin(), text.end());
}

int digit_of(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

void read_list(const std::string& path, std::vector<Input>* inputs) {
  const std::string text = text_of(path);
  for (size_t at = 0; at < text.size();) {
    const size_t space = text.find(' ', at), end = std::min(text.find('\n', at), text.size());
    if (space > end) usage("no list: " + path);
    Bytes bytes;
    for (size_t i = space + 1; i + 1 < end; i += 2)
      bytes.push_back(static_cast<uint8_t>(digit_of(text[i]) << 4 | digit_of(text[i + 1])));
    if (options.target->of_messages) {
      bytes.resize(bytes.size() + 8);
      seal(&bytes);
    }
    inputs->push_back({bytes, text.substr(at, space - at)});
    at = end + 1;
  }
}

std::vector<std::string> files_of(const std::string& folder) {
  std::vector<std::string> names;
  DIR* open = opendir(folder.c_str());
  while (const dirent* entry = readdir(open))
    if (entry->d_name[0] != '.') names.push_back(folder + "/" + entry->d_name);
  closedir(open);
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<Input> read_inputs() {
  std::vector<Input> inputs;
  for (const std::string& name : options.inputs) {
    struct stat found;
    if (stat(name.c_str(), &found) != 0) usage("no such input: " + name);
    if (S_ISDIR(found.st_mode)) {
      for (const std::string& path : files_of(name)) inputs.push_back({bytes_of(path), ""});
    } else if (name.size() > 4 && name.substr(name.size() - 4) == ".txt") {
      read_list(name, &inputs);
    } else {
      inputs.push_back({bytes_of(name), ""});
    }
  }
  if (options.target->of_messages && options.checksum == Checksum::repaired)
    for (Input& input : inputs) seal(&input.bytes);
  return inputs;
}

Bytes make_input(Random* random, const std::vector<Bytes>& pool) {
  if (!options.target->of_messages) {
    Bytes choices = pool.empty() || random->once_in(2) ? Bytes() : random->of(pool);
    if (choices.empty()) {
      choices.resize(static_cast<size_t>(random->within(8, 400)));
      for (uint8_t& each : choices) each = static_cast<uint8_t>(random->next());
    }
    for (int64_t i = random->below(6); i > 0; --i)
      choices[static_cast<size_t>(random->below(static_cast<int64_t>(choices.size())))] =
          static_cast<uint8_t>(random->once_in(2) ? random->next() : random->below(4));
    return choices;
  }
  const bool merge = std::strcmp(options.target->name, "merge") == 0;
  const bool made = pool.empty() || random->once_in(3);
  Bytes message = !made ? random->of(pool) : merge ? make_ternaries(random) : make_message(random);
  if (made && random->once_in(3)) return message;
  const Bytes& other = pool.empty() ? message : random->of(pool);
  mutate(random, &message, other.empty() ? message : other, options.checksum);
  return message;
}

// Inputs as read_list reads them.
void write_list(std::FILE* file, const std::vector<Bytes>& found) {
  for (Bytes input : found) {
    const bool message = options.target->of_messages;
    if (message) seal(&input);
    if (message && input.size() < 13) continue;
    const Verdict verdict = message ? decode(input) : Verdict{"-", "", 0};
    std::fprintf(file, "%s ", verdict.code == nullptr ? "ok" : verdict.code);
    const size_t size = input.size() - (message ? 8 : 0);
    for (size_t i = 0; i < size; ++i) std::fprintf(file, "%02x", input[i]);
    std::fprintf(file, "\n");
  }
}

// Whether no message of this method before had this error in this field.
bool is_new_kind(const Bytes& message) {
  static std::vector<std::string> known;
  if (!options.target->of_messages || message.size() < 13) return false;
  const Verdict verdict = decode(message);
  if (verdict.code == nullptr) return false;
  const std::string kind = std::string(verdict.code) + " " +
                           verdict.field.substr(verdict.field.rfind('.') + 1) + " " +
                           std::to_string(message[wire::kHeadBytes]);
  if (std::find(known.begin(), known.end(), kind) != known.end()) return false;
  known.push_back(kind);
  return true;
}

void report(double took, size_t inputs, size_t pool) {
  std::printf(
      "{\"target\": \"%s\", \"executions\": %lld, \"seconds\": %.2f, \"inputs\": %zu, "
      "\"pool\": %zu, \"slowest_ms\": %.2f",
      options.target->name, static_cast<long long>(executed), took, inputs, pool, 1000 * slowest);
  std::printf(", \"accepted\": [");
  for (size_t i = 0; i < counts().accepted.size(); ++i)
    std::printf("%s%lld", i > 0 ? ", " : "", static_cast<long long>(counts().accepted[i]));
  std::printf("], \"refused\": {");
  for (size_t i = 0; i < kCodeCount; ++i)
    std::printf("%s\"%s\": %lld", i > 0 ? ", " : "", kErrorCodes[i],
                static_cast<long long>(counts().refused[i]));
  std::printf("}, \"operators\": %lld, \"operators_refused\": %lld}\n",
              static_cast<long long>(counts().operators),
              static_cast<long long>(counts().operators_refused));
}

int run() {
  std::vector<Bytes> pool, found;
  const std::vector<Input> inputs = read_inputs();
  const double begin = now();
  for (const Input& input : inputs) {
    if (!input.verdict.empty() && options.target->of_messages) {
      const char* code = decode(input.bytes).code;
      if (input.verdict != (code == nullptr ? "ok" : code)) {
        running = &input.bytes;
        std::fprintf(stderr, "fuzz: expected %s, got %s\n", input.verdict.c_str(),
                     code == nullptr ? "ok" : code);
        broken("another verdict");
      }
    }
    execute(input.bytes);
    pool.push_back(input.bytes);
  }
  if (options.emit > 0) {
    Random random(options.seed);
    for (int64_t i = 0; i < options.emit; ++i) write_list(stdout, {make_input(&random, pool)});
    return 0;
  }
  saw_new_edge();
  const double end = begin + options.seconds;
  Random random(options.seed);
  while (executed < options.runs || (options.seconds > 0 && now() < end)) {
    const Bytes input = make_input(&random, pool);
    execute(input);
    const bool reached = saw_new_edge(), unlike = !options.save.empty() && is_new_kind(input);
    if ((reached || unlike) && input.size() < kSaved) found.push_back(input);
    if (reached && pool.size() < kPool) pool.push_back(input);
  }
  if (!options.save.empty()) {
    std::FILE* file = std::fopen(options.save.c_str(), "w");
    if (file == nullptr) usage("cannot write " + options.save);
    write_list(file, found);
    std::fclose(file);
  }
  report(now() - begin, inputs.size(), pool.size());
  return 0;
}

void parse(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.substr(0, 2) != "--") {
      if (options.target != nullptr) {
        options.inputs.push_back(name);
        continue;
      }
      for (const Target& each : kTargets)
        if (name == each.name) options.target = &each;
      if (options.target == nullptr) usage("no such target: " + name);
      continue;
    }
    if (++i == argc) usage("no value for " + name);
    const std::string value = argv[i];
    if (name == "--seconds")
      options.seconds = std::stod(value);
    else if (name == "--runs")
      options.runs = std::stoll(value);
    else if (name == "--emit")
      options.emit = std::stoll(value);
    else if (name == "--seed")
      options.seed = std::stoull(value);
    else if (name == "--save")
      options.save = value;
    else if (name == "--crashes")
      options.crashes = value;
    else if (name == "--checksum")
      options.checksum = value == "left" ? Checksum::left : Checksum::repaired;
    else
      usage("no such option: " + name);
  }
  if (options.target == nullptr)
    usage("which target? decode, round_trip, merge, inspect, aggregate");
}

}  // namespace

void broken(const char* what) {
  std::fprintf(stderr, "fuzz: %s\n", what);
  leave_input();
  std::abort();
}

}  // namespace gcext::fuzz

int main(int argc, char** argv) {
  using namespace gcext::fuzz;
  parse(argc, argv);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(leave_input);
  std::signal(SIGABRT, [](int) { leave_input(); });
  for (const int signal_number : {SIGALRM, SIGSEGV, SIGILL, SIGFPE})
    if (signal_number == SIGALRM || __sanitizer_set_death_callback == nullptr)
      std::signal(signal_number, [](int) { broken("a signal: a hang, or a crash"); });
  return run();
}
