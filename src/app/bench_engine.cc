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
#include "app/bench_engine_cost.h"
#include "app/bench_engine_gemm.h"
#include "app/bench_engine_loop.h"
#include "app/bench_engine_measure.h"
#include "app/bench_engine_report.h"
#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cpu/cpu_topology.h"
#include "native/exec/cpu/host_memory.h"
#include "native/exec/cpu/kernels.h"
#include "native/exec/cuda/cuda_executor.h"
#include "native/exec/cuda/load_cuda.h"
#include "native/load_engine.h"
#include "native/model/model_dir.h"

namespace dyn::app::bench {
namespace {

using Clock = std::chrono::steady_clock;
using native::CpuIsa;

constexpr std::string_view kUsage =
    R"(Usage: dynamo-trtllm bench engine --model DIR [options]

Measures the native engine without a network: the whole engine under load (scheduler included), its start and memory;
its executor alone: time to first token by prompt length, decoding by batch size, cost of a step by context and batch;
beside the read bandwidth and the multiply-add rate of this machine, measured in the same run.

  --model DIR|NAME         model directory, or a model in the Hugging Face cache
  --load-format auto|safetensors|dummy   the model's files, or random weights (config.json is all they need)  [auto]
  --device auto|cpu|cuda   where it computes                          [auto: on a GPU where one can be used]
  --threads N              compute threads                            [one a core]
  --isa best|portable|avx2|avx512|avx512_bf16    instruction set of the kernels  [best]
  --cpu-path auto|oracle|fast  path of the executor: fast for BF16 checkpoints  [auto]
  --weight-dtype auto|int8 as stored, or INT8 with a scale a row      [auto]
  --measure PART[,PART...] load, ttft, decode, cost                   [all]
  --loads S:I:O[,...]      load: S requests together, of I prompt and O answer tokens  [1:512:1,1:32:128,8:128:64,32:128:64]
  --prompt-lengths N[,N...]  those above the model's context are left out  [32,64,128,256,512,1024,2048]
  --batch-sizes N[,N...]   sequences that decode together             [1,2,4,8,16,32,64]
  --contexts N[,N...]      cost: of each of the --batch-sizes, where memory holds them  [1,512,1024,2048,4096,8192]
  --cost-kv-mib N          cost: KV memory at most                    [a quarter of what is free, 4096 at most]
  --seconds S              of each measurement; at least one prompt or step  [2]
  --max-cost-ratio X       exit status 1 when a step takes more than X times its floor
  --json                   JSON instead of a table
  --markdown               the tables for a page of documentation
)";

// What is measured.
struct Parts {
  bool load = true;
  bool ttft = true;
  bool decode = true;
  bool cost = true;

  [[nodiscard]] bool executor() const { return ttft || decode || cost; }
};

enum class Form : uint8_t { kTable, kJson, kMarkdown };

struct Options {
  std::string model;
  native::LoadFormat load_format = native::LoadFormat::kSafetensors;
  native::DeviceChoice device = native::DeviceChoice::kAuto;
  unsigned threads = 0;  // 0: one a core
  CpuIsa isa = CpuIsa::kBest;
  native::CpuPathChoice path = native::CpuPathChoice::kAuto;
  native::WeightDtype weight_dtype = native::WeightDtype::kAuto;
  std::vector<unsigned> prompts = {32, 64, 128, 256, 512, 1024, 2048};
  std::vector<unsigned> batches = {1, 2, 4, 8, 16, 32, 64};
  std::vector<unsigned> contexts = {1, 512, 1024, 2048, 4096, 8192};
  std::vector<EngineLoad> loads = {{1, 512, 1}, {1, 32, 128}, {8, 128, 64}, {32, 128, 64}};
  Parts parts;
  uint64_t cost_kv_mib = 0;  // 0: chosen by free memory
  double max_cost_ratio = 0;
  double seconds = 2;
  Form form = Form::kTable;
};

Result<Parts> parse_parts(std::string_view text) {
  Parts parts{.load = false, .ttft = false, .decode = false, .cost = false};
  while (true) {
    const size_t comma = text.find(',');
    const std::string_view word = text.substr(0, comma);
    bool* part = word == "load"     ? &parts.load
                 : word == "ttft"   ? &parts.ttft
                 : word == "decode" ? &parts.decode
                 : word == "cost"   ? &parts.cost
                                    : nullptr;
    if (part == nullptr)
      return invalid_argument(fmt::format("--measure: '{}' is none of load, ttft, decode, cost", word));
    *part = true;
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

// A value that a function reads from its text.
template <class T, class Parse>
Result<void> take_parsed(ArgumentReader& reader, T& to, const Parse& parse) {
  std::string text;
  if (auto taken = reader.take(text); !taken) return taken;
  auto value = parse(text);
  if (!value) return value.error();
  to = *std::move(value);
  return {};
}

Result<Options> parse(std::span<const std::string_view> args) {
  Options options;
  ArgumentReader reader(args);
  while (reader.more()) {
    const std::string_view name = reader.next();
    Result<void> done;
    if (name == "--model")
      done = reader.take(options.model);
    else if (name == "--load-format")
      done = reader.take_choice(options.load_format, {{"auto", native::LoadFormat::kSafetensors},
                                                      {"safetensors", native::LoadFormat::kSafetensors},
                                                      {"dummy", native::LoadFormat::kDummy}});
    else if (name == "--device")
      done = reader.take_choice(options.device, {{"auto", native::DeviceChoice::kAuto},
                                                 {"cpu", native::DeviceChoice::kCpu},
                                                 {"cuda", native::DeviceChoice::kCuda}});
    else if (name == "--threads")
      done = reader.take(options.threads, 1U, 1024U);
    else if (name == "--isa")
      done = reader.take_choice(options.isa, {{"best", CpuIsa::kBest},
                                              {"portable", CpuIsa::kPortable},
                                              {"avx2", CpuIsa::kAvx2},
                                              {"avx512", CpuIsa::kAvx512},
                                              {"avx512_bf16", CpuIsa::kAvx512Bf16}});
    else if (name == "--cpu-path")
      done = reader.take_choice(options.path, {{"auto", native::CpuPathChoice::kAuto},
                                               {"oracle", native::CpuPathChoice::kOracle},
                                               {"fast", native::CpuPathChoice::kFast}});
    else if (name == "--weight-dtype")
      done = reader.take_choice(options.weight_dtype,
                                {{"auto", native::WeightDtype::kAuto}, {"int8", native::WeightDtype::kInt8}});
    else if (name == "--prompt-lengths")
      done = reader.take_list(options.prompts, 1U << 20);
    else if (name == "--batch-sizes")
      done = reader.take_list(options.batches, 1024);
    else if (name == "--seconds")
      done = reader.take(options.seconds, 0.001, 3600.0);
    else if (name == "--measure")
      done = take_parsed(reader, options.parts, parse_parts);
    else if (name == "--loads")
      done = take_parsed(reader, options.loads, [&](std::string_view text) { return parse_engine_loads(name, text); });
    else if (name == "--contexts")
      done = reader.take_list(options.contexts, 1U << 20);
    else if (name == "--cost-kv-mib")
      done = reader.take(options.cost_kv_mib, uint64_t{1}, uint64_t{1} << 30);
    else if (name == "--max-cost-ratio")
      done = reader.take(options.max_cost_ratio, 0.0, 1e6);
    else if (name == "--json")
      options.form = Form::kJson;
    else if (name == "--markdown")
      options.form = Form::kMarkdown;
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
    report_.model = options_.model;
    report_.dummy_weights = options_.load_format == native::LoadFormat::kDummy;
    report_.threads = options_.threads > 0 ? options_.threads : native::default_threads();
    const bool any_path =
        options_.path == native::CpuPathChoice::kAuto && options_.weight_dtype == native::WeightDtype::kAuto;
    on_gpu_ = options_.device == native::DeviceChoice::kCuda ||
              (options_.device == native::DeviceChoice::kAuto && any_path && native::probe_cuda().ok());
    if (on_gpu_ && !any_path)
      return unsupported("--cpu-path and --weight-dtype are the CPU's: leave out --device cuda");
    // First, so that start-up and memory are those of a process that serves.
    if (options_.parts.load) {
      auto level = measure_engine({.model = options_.model,
                                   .load_format = options_.load_format,
                                   .device = on_gpu_ ? native::DeviceChoice::kCuda : native::DeviceChoice::kCpu,
                                   .cpu_path = options_.path,
                                   .weight_dtype = options_.weight_dtype,
                                   .threads = report_.threads},
                                  options_.loads, options_.seconds);
      if (!level) return level.error().with_context("engine");
      report_.engine = *std::move(level);
    }
    if (options_.parts.executor()) {
      if (auto done = load(); !done) return done.error();
      if (auto done = measure(); !done) return done.error();
      report_.resident = read_resident_memory();
      executor_.reset();  // so that its memory is free for the buffer
    }
    std::fputs("ceilings\n", stderr);
    auto ceilings = on_gpu_ ? measure_gpu_ceilings()
                            : measure_ceilings({.threads = report_.threads,
                                                .isa = options_.isa,
                                                .kernels = report_.isa,
                                                .seconds = std::min(options_.seconds, kCeilingSeconds)});
    if (!ceilings) return ceilings.error().with_context("ceilings");
    report_.ceilings = std::move(*ceilings);
    if (options_.parts.executor() && !on_gpu_) {
      auto gemm = measure_products();
      if (!gemm) return gemm.error();
      report_.gemm = std::move(*gemm);
    }
    return std::move(report_);
  }

 private:
  static constexpr double kCeilingSeconds = 1;
  static constexpr double kProductSeconds = 0.05;  // there are many
  static constexpr double kCostSeconds = 0.3;      // there are many points
  static constexpr uint64_t kMostCostBytes = uint64_t{4} << 30;
  // As the engine that serves has them.
  static constexpr uint32_t kTokensPerStep = 512;
  static constexpr uint32_t kTokensPerGpuStep = 8192;
  static constexpr uint64_t kGpuReadBytes = uint64_t{4} << 30;
  static constexpr double kBf16FlopsOfMultiprocessor = 7.5e12;  // H100 and H200 SXM: 989 TFLOP/s of 132
  static constexpr uint32_t kTokensPerBlock = 32;

  // Peaks for the numbers of rows that the runs had.
  Result<std::vector<GemmPeak>> measure_products() {
    std::vector<uint32_t> rows;
    for (const auto* runs : {&report_.prompts, &report_.decodes}) {
      for (const EngineRun& run : *runs) rows.push_back(run.step_tokens);
    }
    for (const CostPoint& point : report_.cost) rows.push_back(point.run.step_tokens);
    std::ranges::sort(rows);
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
    return measure_gemm({.threads = report_.threads,
                         .path = native::path_of(layout_),
                         .layout = layout_,
                         .cols = config_.hidden_size,
                         .rows = std::move(rows),
                         .seconds = std::min(options_.seconds, kProductSeconds)});
  }

  Result<void> load() {
    if (native::kernels_for(options_.isa) == nullptr) {
      return unsupported("--isa: this machine lacks the instruction set");
    }
    forget_peak_memory();

    auto start = Clock::now();
    auto directory = native::resolve_model(options_.model);
    if (!directory) return directory.error();
    auto config = native::load_model_config(*directory);
    if (!config) return config.error();
    config_ = std::move(*config);
    report_.architecture = config_.architecture;
    report_.start.config_s = seconds_since(start);
    if (auto done = choose_runs(); !done) return done;

    if (on_gpu_) return load_gpu(*directory);
    start = Clock::now();
    const auto layout = native::layout_for(options_.path, options_.weight_dtype);
    if (!layout) return layout.error();
    auto weights = native::load_weights(
        config_, *directory, {.format = options_.load_format, .layout = *layout, .threads = report_.threads});
    if (!weights) return weights.error();
    if (auto done = native::check_loaded(options_.path, options_.weight_dtype, *weights); !done) return done.error();
    report_.start.weights_s = seconds_since(start);
    layout_ = weights->layout;
    const native::CpuPath path = native::path_of(layout_);
    report_.isa = native::cpu_kernels_name(path, options_.isa);
    report_.path = fmt::format("{} path, {} weights", to_string(path), to_string(weights->layout));
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
    cost_ = {.contexts = options_.contexts,
             .batches = options_.batches,
             .seconds = std::min(options_.seconds, kCostSeconds)};
    std::erase_if(cost_.contexts, [&](unsigned context) { return context > config_.max_positions; });
    for (const unsigned batch : options_.batches) decodes_.push_back(decode_shape(batch, config_.max_positions));
    return {};
  }

  // Rows of a step and pages of the pool that the runs need; `free_bytes`: of memory for the pool.
  native::ExecutorLimits limits_for(uint64_t page_bytes, uint64_t free_bytes, uint32_t tokens_per_step) {
    const uint32_t most_rows = *std::ranges::max_element(options_.batches);
    uint64_t pages = pages_needed(prompts_, decodes_, kTokensPerBlock);
    if (options_.parts.cost) {
      const uint64_t cost_bytes =
          options_.cost_kv_mib > 0 ? options_.cost_kv_mib << 20 : std::min(free_bytes / 4, kMostCostBytes);
      pages = std::max(pages, cost_pages(cost_, kTokensPerBlock, cost_bytes / page_bytes));
    }
    report_.kv_pool_bytes = pages * page_bytes;
    report_.kv_pool_tokens = pages * kTokensPerBlock;
    return {.max_batch_size = most_rows,
            .max_num_tokens = std::max(most_rows, tokens_per_step),
            .tokens_per_block = kTokensPerBlock,
            .num_pages = static_cast<uint32_t>(pages)};
  }

  Result<void> load_gpu(const std::string& directory) {
    auto device = native::CudaDevice::open({});
    if (!device) return device.error().with_context("device cuda");
    const auto free = device->free_bytes();
    if (!free) return free.error();
    const auto limits = limits_for(native::cuda_kv_bytes_per_page(config_, kTokensPerBlock), *free, kTokensPerGpuStep);
    auto loaded = native::load_cuda_executor(
        {.format = options_.load_format, .limits = limits, .max_seq_len = config_.max_positions}, config_, directory);
    if (!loaded) return loaded.error();
    report_.isa = loaded->device.name;
    report_.path = "CUDA executor, bf16";
    report_.start.weights_s = loaded->weights_s;
    report_.start.executor_s = loaded->device_s + loaded->executor_s;
    report_.weight_bytes = loaded->weight_bytes;
    report_.loaded_resident_bytes = read_resident_memory().now_bytes;
    executor_ = std::move(loaded->executor);
    return {};
  }

  // Reading is measured; the rate of the tensor cores is that of the vendor's sheet.
  static Result<Ceilings> measure_gpu_ceilings() {
    auto device = native::CudaDevice::open({});
    if (!device) return device.error();
    Ceilings ceilings;
    ceilings.buffer_bytes = kGpuReadBytes;
    native::cuda::ErrorText error{};
    if (auto done = native::CudaDevice::check(
            device->api().measure_read(device->handle(), kGpuReadBytes, &ceilings.read_bytes_per_s, &error), error,
            "read bandwidth");
        !done)
      return done.error();
    ceilings.flops_per_s = device->facts().multiprocessors * kBf16FlopsOfMultiprocessor;
    ceilings.all.emplace_back("bf16-datasheet", ceilings.flops_per_s);
    return ceilings;
  }

  Result<void> make_executor(native::Weights weights) {
    const auto limits = limits_for(native::kv_bytes_per_page(config_, kTokensPerBlock, native::path_of(weights.layout)),
                                   native::available_memory_bytes(), kTokensPerStep);
    if (const uint64_t free = native::available_memory_bytes(); report_.kv_pool_bytes > free) {
      return Error{Code::kOverloaded,
                   fmt::format("the KV pool needs {} MiB and {} MiB of memory are free: give smaller --batch-sizes "
                               "or --prompt-lengths",
                               report_.kv_pool_bytes >> 20, free >> 20)};
    }
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
    if (options_.parts.ttft) {
      for (const unsigned tokens : prompts_) {
        auto run = measure_prompt(*executor_, config_, tokens, options_.seconds);
        if (!run) return run.error().with_context(fmt::format("prompt of {} tokens", tokens));
        std::fprintf(stderr, "prompt %7u  %8.1f tokens/s\n", tokens, run->tokens_per_s());
        report_.prompts.push_back(std::move(*run));
      }
    }
    if (options_.parts.decode) {
      for (const DecodeShape& shape : decodes_) {
        auto run = measure_decode(*executor_, config_, shape, options_.seconds);
        if (!run) return run.error().with_context(fmt::format("batch of {}", shape.batch));
        std::fprintf(stderr, "batch  %7u  %8.1f tokens/s\n", shape.batch, run->tokens_per_s());
        report_.decodes.push_back(std::move(*run));
      }
    }
    if (options_.parts.cost) {
      std::fputs("cost of a step\n", stderr);
      auto points = measure_cost(*executor_, config_, cost_);
      if (!points) return points.error().with_context("cost");
      report_.cost = *std::move(points);
    }
    return {};
  }

  const Options& options_;
  native::ModelConfig config_;
  native::MatrixLayout layout_ = native::MatrixLayout::kRowMajor;  // of the weights that were loaded
  std::vector<unsigned> prompts_;
  std::vector<DecodeShape> decodes_;
  CostShapes cost_;
  bool on_gpu_ = false;
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
  std::puts((options->form == Form::kJson       ? to_json(*report)
             : options->form == Form::kMarkdown ? to_markdown(*report)
                                                : to_table(*report))
                .c_str());
  int status = 0;
  for (const CostPoint& point : report->cost) {
    const double floor = floor_s(point, report->ceilings);
    if (options->max_cost_ratio > 0 && point.step_s() > options->max_cost_ratio * floor) {
      std::fprintf(stderr, "context %u, batch %u: a step takes %.2f times its floor, above %.2f\n", point.context,
                   point.run.batch, point.step_s() / floor, options->max_cost_ratio);
      status = 1;
    }
  }
  return status;
}

}  // namespace dyn::app::bench
