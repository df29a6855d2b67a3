#include "app/bench_serve.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <limits>
#include <optional>

#include "app/bench_arguments.h"
#include "app/bench_serve_load.h"
#include "app/bench_serve_report.h"
#include "app/bench_serve_workload.h"
#include "base/env.h"
#include "base/posix.h"

namespace dyn::app::bench {
namespace {

using std::chrono::milliseconds;

constexpr std::string_view kUsage =
    R"(Usage: dynamo-trtllm bench serve --url URL --model NAME [options]

Sends streamed requests to an OpenAI endpoint and measures what its clients see: time to first token (TTFT), time per
output token (TPOT), inter-token latency (ITL), end-to-end latency (E2EL), throughput, failures by kind. Options and
figures are named as in "vllm bench serve" and AIPerf.

  --url URL                http://host:port[/path]; /v1/chat/completions or /v1/completions is put behind it
  --model NAME             in the requests
  --endpoint-type chat|completions                                    [chat]
  --api-key KEY            sent as bearer token                       [OPENAI_API_KEY, else none]
Load
  --max-concurrency N      requests under way at most                 [1, with --request-rate 4096]
  --request-rate R         arrivals a second, a Poisson process; without it the next request follows an answer
  --num-prompts N          requests in total                          [100, with --duration no limit]
  --duration S             no request starts later; those under way are finished
  --num-warmups N          requests before the measurement, one by one; the first failure ends the run  [1]
  --timeout S              of one request                             [600]
  --seed N                 of arrivals, lengths and prompts           [0]
Requests
  --input-len N|N:M        tokens of a prompt, drawn evenly from the range  [128]
  --output-len N|N:M       tokens of an answer                        [128]
  --vocab-size N           token ids of random completions prompts are below it  [32000]
  --dataset-path FILE      JSON lines instead of random prompts: {"prompt": "..."} or {"messages": [...]}, each with
                           "output_tokens" or else --output-len; used from the beginning again at the end
  --temperature X                                                     [0]
  --stop-at-eos            answers may end early; otherwise the requests say ignore_eos
Result
  --max-p99-ttft-ms X, --max-p99-itl-ms X, --max-p99-e2el-ms X, --min-output-throughput X
                           exit status 1 when missed
  --max-failed N           failed requests that are no failure of the run  [0]
  --json                   JSON instead of a table
)";

struct Options {
  ServeRun run;
  EndpointType endpoint = EndpointType::kChat;
  std::string api_key;
  std::optional<unsigned> max_concurrency;
  std::optional<uint64_t> num_prompts;
  double duration_s = 0;
  unsigned num_warmups = 1;
  double timeout_s = 600;
  uint32_t vocab_size = 32'000;
  double temperature = 0;
  bool ignore_eos = true;
  ServeThresholds thresholds;
  bool json = false;
};

constexpr unsigned kMaxConcurrency = 16'384;
constexpr unsigned kOpenLoopConcurrency = 4'096;
constexpr uint64_t kDefaultPrompts = 100;
constexpr double kMaxSeconds = 30.0 * 24 * 3600;

template <class T>
Result<void> take_optional(ArgumentReader& reader, std::optional<T>& to, T least, T most) {
  return reader.take(to.emplace(), least, most);
}

Result<void> take_lengths(ArgumentReader& reader, std::string_view name, LengthRange& to) {
  std::string text;
  if (auto taken = reader.take(text); !taken) return taken;
  auto range = parse_length_range(name, text);
  if (!range) return range.error();
  to = *range;
  return {};
}

Result<void> take_option(ArgumentReader& reader, std::string_view name, Options& options) {
  constexpr double kMost = 1e12;
  if (name == "--url") return reader.take(options.run.url);
  if (name == "--model") return reader.take(options.run.model);
  if (name == "--endpoint-type") {
    return reader.take_choice(options.endpoint,
                              {{"chat", EndpointType::kChat}, {"completions", EndpointType::kCompletions}});
  }
  if (name == "--api-key") return reader.take(options.api_key);
  if (name == "--max-concurrency") return take_optional(reader, options.max_concurrency, 1U, kMaxConcurrency);
  if (name == "--request-rate") return reader.take(options.run.request_rate, 1e-6, 1e6);
  if (name == "--num-prompts") return take_optional(reader, options.num_prompts, uint64_t{1}, uint64_t{1} << 40);
  if (name == "--duration") return reader.take(options.duration_s, 0.001, kMaxSeconds);
  if (name == "--num-warmups") return reader.take(options.num_warmups, 0U, 1'000'000U);
  if (name == "--timeout") return reader.take(options.timeout_s, 0.001, kMaxSeconds);
  if (name == "--seed") return reader.take(options.run.seed, uint64_t{0}, std::numeric_limits<uint64_t>::max());
  if (name == "--input-len") return take_lengths(reader, name, options.run.input);
  if (name == "--output-len") return take_lengths(reader, name, options.run.output);
  if (name == "--vocab-size") return reader.take(options.vocab_size, 1U, 1U << 30);
  if (name == "--dataset-path") return reader.take(options.run.dataset);
  if (name == "--temperature") return reader.take(options.temperature, 0.0, 100.0);
  if (name == "--max-p99-ttft-ms") return reader.take(options.thresholds.max_p99_ttft_ms, 0.0, kMost);
  if (name == "--max-p99-itl-ms") return reader.take(options.thresholds.max_p99_itl_ms, 0.0, kMost);
  if (name == "--max-p99-e2el-ms") return reader.take(options.thresholds.max_p99_e2el_ms, 0.0, kMost);
  if (name == "--min-output-throughput") return reader.take(options.thresholds.min_output_throughput, 0.0, kMost);
  if (name == "--max-failed")
    return reader.take(options.thresholds.max_failed, uint64_t{0}, std::numeric_limits<uint64_t>::max());
  if (name == "--stop-at-eos") {
    options.ignore_eos = false;
  } else if (name == "--json") {
    options.json = true;
  } else {
    return invalid_argument("unknown option " + std::string(name));
  }
  return {};
}

Result<Options> parse(std::span<const std::string_view> args) {
  Options options;
  options.api_key = env("OPENAI_API_KEY").value_or("");
  ArgumentReader reader(args);
  while (reader.more()) {
    const std::string_view name = reader.next();
    if (auto checked = reader.finish(take_option(reader, name, options)); !checked) return checked.error();
  }
  if (options.run.url.empty()) return invalid_argument("--url is needed");
  if (options.run.model.empty()) return invalid_argument("--model is needed");
  options.run.endpoint_type = options.endpoint == EndpointType::kChat ? "chat" : "completions";
  options.run.max_concurrency =
      options.max_concurrency.value_or(options.run.request_rate > 0 ? kOpenLoopConcurrency : 1);
  return options;
}

// SIGINT and SIGTERM as a question, for this thread and those it starts.
class Interruption {
 public:
  Interruption() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &signals_, &before_);
  }
  ~Interruption() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  Interruption(const Interruption&) = delete;
  Interruption& operator=(const Interruption&) = delete;

  bool came() {
    const timespec now{};
    came_ |= ::sigtimedwait(&signals_, nullptr, &now) > 0;
    return came_;
  }

 private:
  sigset_t signals_{};
  sigset_t before_{};
  bool came_ = false;
};

LoadResult run_load(LoadOptions options, const Workload& workload, Interruption& interruption) {
  constexpr milliseconds kLook{20};
  constexpr std::chrono::seconds kTell{10};
  LoadGenerator load(std::move(options), workload);
  load.start();
  bool interrupted = false;
  auto next_word = ServeClock::now() + kTell;
  while (!load.wait(kLook)) {
    if (!interrupted && interruption.came()) {
      interrupted = true;
      load.interrupt();
    }
    if (ServeClock::now() >= next_word) {
      next_word += kTell;
      const LoadProgress progress = load.progress();
      std::fprintf(stderr, "%llu completed, %llu failed\n", static_cast<unsigned long long>(progress.completed),
                   static_cast<unsigned long long>(progress.failed));
    }
  }
  return load.result();
}

int fail(const Error& error) {
  std::fprintf(stderr, "bench serve: %s\n", error.message.c_str());
  return error.code == Code::kInvalidArgument ? 2 : 1;
}

constexpr int kInterruptedStatus = 130;  // as a shell reports SIGINT

int bench_serve(const Options& options) {
  std::vector<DatasetItem> dataset;
  if (!options.run.dataset.empty()) {
    auto items = read_dataset(options.run.dataset);
    if (!items) return fail(items.error().with_context("--dataset-path"));
    dataset = *std::move(items);
    const auto is_chat = [](const DatasetItem& item) { return !item.messages.empty(); };
    if (options.endpoint == EndpointType::kCompletions && std::ranges::any_of(dataset, is_chat))
      return fail(invalid_argument("--dataset-path: \"messages\" are for --endpoint-type chat"));
  }
  const auto url = net::parse_http_url(options.run.url);
  if (!url) return fail(url.error().with_context("--url"));
  const auto endpoint = net::HttpEndpoint::resolve(*url);
  if (!endpoint) return fail(endpoint.error().with_context("--url"));
  raise_descriptor_limit();

  const Workload workload({.model = options.run.model,
                           .endpoint = options.endpoint,
                           .input = options.run.input,
                           .output = options.run.output,
                           .vocab_size = options.vocab_size,
                           .seed = options.run.seed,
                           .temperature = options.temperature,
                           .ignore_eos = options.ignore_eos},
                          std::move(dataset));
  LoadOptions load{.endpoint = *endpoint,
                   .path = url->path,
                   .api_key = options.api_key,
                   .timeout = milliseconds(static_cast<int64_t>(options.timeout_s * 1e3)),
                   .seed = options.run.seed};
  Interruption interruption;
  // Alone and first: an endpoint that cannot answer is told by one clear line instead of a table of failures.
  for (unsigned i = 0; i < options.num_warmups; ++i) {
    load.num_prompts = 1;
    load.first_request = i;
    const LoadResult result = run_load(load, workload, interruption);
    if (result.interrupted) return kInterruptedStatus;
    if (!result.failures.empty()) {
      const auto& [kind, failure] = *result.failures.begin();
      return fail({Code::kUnavailable, fmt::format("the warm-up request to {} failed: {}: {}; is the server up, and "
                                                   "is the model '{}'?",
                                                   options.run.url, kind, failure.example, options.run.model)});
    }
  }
  load.first_request = options.num_warmups;  // other prompts: no prefix of them is cached
  load.max_concurrency = options.run.max_concurrency;
  load.request_rate = options.run.request_rate;
  load.duration_s = options.duration_s;
  load.num_prompts = options.num_prompts.value_or(options.duration_s > 0 ? 0 : kDefaultPrompts);
  const LoadResult result = run_load(load, workload, interruption);
  std::puts((options.json ? serve_json(options.run, result) : serve_table(options.run, result)).c_str());
  if (result.interrupted) return kInterruptedStatus;
  const auto lines = missed(result, options.thresholds);
  for (const std::string& line : lines) std::fprintf(stderr, "bench serve: %s\n", line.c_str());
  return lines.empty() ? 0 : 1;
}

}  // namespace

int run_bench_serve(std::span<const std::string_view> args) {
  if (std::ranges::any_of(args, [](std::string_view arg) { return arg == "--help" || arg == "-h"; })) {
    std::fwrite(kUsage.data(), 1, kUsage.size(), stdout);
    return 0;
  }
  const auto options = parse(args);
  if (!options) {
    std::fprintf(stderr, "bench serve: %s; see --help\n", options.error().message.c_str());
    return 2;
  }
  return bench_serve(*options);
}

}  // namespace dyn::app::bench
