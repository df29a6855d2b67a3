#include "app/bench_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "app/bench_arguments.h"
#include "app/bench_engine_ceilings.h"
#include "app/bench_engine_measure.h"
#include "app/bench_engine_report.h"
#include "base/threads.h"
#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cpu/host_memory.h"
#include "native/exec/cpu/kernels.h"
#include "native/load_engine.h"
#include "native/model/model_dir.h"

namespace dyn::app::bench {
namespace {

using Clock = std::chrono::steady_clock;
using native::CpuIsa;

constexpr std::string_view kUsage =
    R"(Usage: dynamo-trtllm bench engine --model DIR [options]

Measures the native engine's CPU executor, without scheduler and network: time to first token by prompt length, decoding
by batch size, start-up, memory; beside the read bandwidth and the multiply-add rate of this machine, measured in the
same run.

  --model DIR|NAME         model directory, or a model in the Hugging Face cache
  --load-format auto|dummy the model's files, or random weights (config.json is all that is needed)  [auto]
  --threads N              compute threads                            [all usable CPUs]
  --isa best|portable|avx2|avx512    instruction set of the kernels   [best]
  --prompt-lengths N[,N...]  those above the model's context are left out  [32,64,128,256,512,1024,2048]
  --batch-sizes N[,N...]   sequences that decode together             [1,2,4,8,16,32,64]
  --seconds S              of each measurement; at least one prompt or step  [2]
  --json                   JSON instead of a table
)";

struct Options {
  std::string model;
  native::LoadFormat load_format = native::LoadFormat::kSafetensors;
  unsigned threads = 0;  // 0: usable_cpus()
  CpuIsa isa = CpuIsa::kBest;
  std::vector<unsigned> prompts = {32, 64, 128, 256, 512, 1024, 2048};
  std::vector<unsigned> batches = {1, 2, 4, 8, 16, 32, 64};
  double seconds = 2;
  bool json = false;
};

Result<Options> parse(std::span<const std::string_view> args) {
  Options options;
  ArgumentReader reader(args);
  while (reader.more()) {
    const std::string_view name = reader.next();
    Result<void> done;
    if (name == "--model")
      done = reader.take(options.model);
    else if (name == "--load-format")
      done = reader.take_choice(options.load_format,
                                {{"auto", native::LoadFormat::kSafetensors}, {"dummy", native::LoadFormat::kDummy}});
    else if (name == "--threads")
      done = reader.take(options.threads, 1U, 1024U);
    else if (name == "--isa")
      done = reader.take_choice(options.isa, {{"best", CpuIsa::kBest},
                                              {"portable", CpuIsa::kPortable},
                                              {"avx2", CpuIsa::kAvx2},
                                              {"avx512", CpuIsa::kAvx512}});
    else if (name == "--prompt-lengths")
      done = reader.take_list(options.prompts, 1U << 20);
    else if (name == "--batch-sizes")
      done = reader.take_list(options.batches, 1024);
    else if (name == "--seconds")
      done = reader.take(options.seconds, 0.001, 3600.0);
    else if (name == "--json")
      options.json = true;
    else
      return invalid_argument("unknown option " + std::string(name));
    if (auto checked = reader.finish(done); !checked) return checked.error();
  }
  if (options.model.empty()) return invalid_argument("--model is needed");
  return options;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One model, loaded once and measured.
class EngineBench {
 public:
  explicit EngineBench(const Options& options) : options_(options) {}

  Result<EngineReport> run() {
    if (auto done = load(); !done) return done.error();
    if (auto done = measure(); !done) return done.error();
    report_.resident = read_resident_memory();
    executor_.reset();  // so that its memory is free for the buffer
    std::fputs("ceilings\n", stderr);
    auto ceilings = measure_ceilings(
        {.threads = report_.threads, .isa = options_.isa, .seconds = std::min(options_.seconds, kCeilingSeconds)});
    if (!ceilings) return ceilings.error().with_context("ceilings");
    report_.ceilings = std::move(*ceilings);
    return std::move(report_);
  }

 private:
  static constexpr double kCeilingSeconds = 1;
  // As the engine that serves has them.
  static constexpr uint32_t kTokensPerStep = 512;
  static constexpr uint32_t kTokensPerBlock = 32;

  Result<void> load() {
    const native::Kernels* kernels = native::kernels_for(options_.isa);
    if (kernels == nullptr) return unsupported("--isa: this machine lacks the instruction set");
    report_.isa = kernels->name;
    report_.threads = options_.threads > 0 ? options_.threads : usable_cpus();
    report_.model = options_.model;
    report_.dummy_weights = options_.load_format == native::LoadFormat::kDummy;

    auto start = Clock::now();
    auto directory = native::resolve_model(options_.model);
    if (!directory) return directory.error();
    auto config = native::load_model_config(*directory);
    if (!config) return config.error();
    config_ = std::move(*config);
    report_.architecture = config_.architecture;
    report_.start.config_s = seconds_since(start);
    if (auto done = choose_runs(); !done) return done;

    start = Clock::now();
    auto weights = native::load_weights(config_, *directory, options_.load_format);
    if (!weights) return weights.error();
    report_.start.weights_s = seconds_since(start);
    report_.weight_bytes = weights->bytes();
    report_.loaded_resident_bytes = read_resident_memory().now_bytes;
    return make_executor(std::move(*weights));
  }

  Result<void> choose_runs() {
    for (const unsigned tokens : options_.prompts) {
      if (tokens < config_.max_positions) {
        prompts_.push_back(tokens);
      } else {
        std::fprintf(stderr, "prompts of %u tokens are left out: the model has %u positions\n", tokens,
                     config_.max_positions);
      }
    }
    if (prompts_.empty()) return invalid_argument("--prompt-lengths: none fits into the model's context");
    for (const unsigned batch : options_.batches) decodes_.push_back(decode_shape(batch, config_.max_positions));
    return {};
  }

  Result<void> make_executor(native::Weights weights) {
    const uint32_t most_rows = *std::ranges::max_element(options_.batches);
    const uint64_t pages = pages_needed(prompts_, decodes_, kTokensPerBlock);
    const uint64_t page_bytes = native::kv_bytes_per_page(config_, kTokensPerBlock);
    report_.kv_pool_bytes = pages * page_bytes;
    report_.kv_pool_tokens = pages * kTokensPerBlock;
    if (const uint64_t free = native::available_memory_bytes(); report_.kv_pool_bytes > free) {
      return Error{Code::kOverloaded,
                   fmt::format("the KV pool needs {} MiB and {} MiB of memory are free: give smaller --batch-sizes "
                               "or --prompt-lengths",
                               report_.kv_pool_bytes >> 20, free >> 20)};
    }
    const native::ExecutorLimits limits{.max_batch_size = most_rows,
                                        .max_num_tokens = std::max(most_rows, kTokensPerStep),
                                        .tokens_per_block = kTokensPerBlock,
                                        .num_pages = static_cast<uint32_t>(pages)};
    const auto start = Clock::now();
    auto executor = native::make_cpu_executor(config_, std::move(weights), limits,
                                              {.threads = report_.threads, .isa = options_.isa});
    if (!executor) return executor.error();
    executor_ = std::move(*executor);
    report_.start.executor_s = seconds_since(start);
    return {};
  }

  Result<void> measure() {
    // The first token after the start pays for cold memory, so it is a figure of its own.
    auto first = measure_prompt(*executor_, config_, prompts_.front(), 0);
    if (!first) return first.error().with_context("first token");
    report_.start.first_token_s = first->seconds;
    report_.start.first_prompt = prompts_.front();
    for (const unsigned tokens : prompts_) {
      auto run = measure_prompt(*executor_, config_, tokens, options_.seconds);
      if (!run) return run.error().with_context(fmt::format("prompt of {} tokens", tokens));
      std::fprintf(stderr, "prompt %7u  %8.1f tokens/s\n", tokens, run->tokens_per_s());
      report_.prompts.push_back(std::move(*run));
    }
    for (const DecodeShape& shape : decodes_) {
      auto run = measure_decode(*executor_, config_, shape, options_.seconds);
      if (!run) return run.error().with_context(fmt::format("batch of {}", shape.batch));
      std::fprintf(stderr, "batch  %7u  %8.1f tokens/s\n", shape.batch, run->tokens_per_s());
      report_.decodes.push_back(std::move(*run));
    }
    return {};
  }

  const Options& options_;
  native::ModelConfig config_;
  std::vector<unsigned> prompts_;
  std::vector<DecodeShape> decodes_;
  std::unique_ptr<native::Executor> executor_;
  EngineReport report_;
};

}  // namespace

int run_bench_engine(std::span<const std::string_view> args) {
  if (std::ranges::any_of(args, [](std::string_view arg) { return arg == "--help" || arg == "-h"; })) {
    std::fwrite(kUsage.data(), 1, kUsage.size(), stdout);
    return 0;
  }
  const auto options = parse(args);
  if (!options) {
    std::fprintf(stderr, "bench engine: %s; see --help\n", options.error().message.c_str());
    return 2;
  }
  const auto report = EngineBench(*options).run();
  if (!report) {
    std::fprintf(stderr, "bench engine: %s\n", report.error().message.c_str());
    return 1;
  }
  std::puts((options->json ? to_json(*report) : to_table(*report)).c_str());
  return 0;
}

}  // namespace dyn::app::bench
