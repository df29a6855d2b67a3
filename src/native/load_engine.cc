#include "native/load_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "base/log.h"
#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cpu/cpu_topology.h"
#include "native/exec/cuda/cuda_executor.h"
#include "native/exec/cuda/load_cuda.h"
#include "native/load_progress.h"
#include "native/model/engine_folder.h"
#include "native/model/model_dir.h"

namespace dyn::native {
namespace {

using Clock = std::chrono::steady_clock;

// Without a size given, the pool is not larger than this many times what a full batch of longest sequences can use:
// more would only be a cache of prefixes, and a small model on a large machine would fill memory with it.
constexpr uint64_t kDefaultPoolBatches = 2;

// Tokens of a step where nobody says how many.
constexpr uint32_t kCpuTokens = 512;
constexpr uint32_t kGpuTokens = 8192;
// Of a GPU's memory, for CUDA graphs and what libraries take later.
constexpr uint64_t kGpuReserveBytes = uint64_t{768} << 20;

double gib(uint64_t bytes) {
  return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0);
}

Result<void> check_parallel(const char* name, uint32_t size) {
  if (size == 1) return {};
  return unsupported(fmt::format("{} {}: the native engine runs in one process on one device; use 1", name, size));
}

Result<void> check(const LoadOptions& options) {
  for (const auto& [name, size] : {std::pair{"tensor_parallel_size", options.tensor_parallel_size},
                                   std::pair{"pipeline_parallel_size", options.pipeline_parallel_size},
                                   std::pair{"expert_parallel_size", options.expert_parallel_size}}) {
    if (auto checked = check_parallel(name, size); !checked) return checked;
  }
  if (options.max_batch_size == 0) return invalid_argument("max_batch_size must be at least 1");
  if (options.max_num_tokens < options.max_batch_size) {
    return invalid_argument(
        fmt::format("max_num_tokens ({}) must not be below max_batch_size ({}): each running request "
                    "needs a token in a step",
                    options.max_num_tokens, options.max_batch_size));
  }
  if (options.max_seq_len == 1) return invalid_argument("max_seq_len must be at least 2");
  if (options.tokens_per_block == 0) return invalid_argument("tokens_per_block must be at least 1");
  if (!(options.gpu_memory_fraction > 0 && options.gpu_memory_fraction <= 1)) {
    return invalid_argument(
        fmt::format("gpu_memory_fraction ({}) must be above 0 and at most 1", options.gpu_memory_fraction));
  }
  if (!(options.kv_cache_fraction > 0 && options.kv_cache_fraction < 1)) {
    return invalid_argument(
        fmt::format("kv_cache_fraction ({}) must be above 0 and below 1", options.kv_cache_fraction));
  }
  return {};
}

ExecutorLimits executor_limits(const LoadOptions& options, uint32_t pages) {
  return {.max_batch_size = options.max_batch_size,
          .max_num_tokens = options.max_num_tokens,
          .tokens_per_block = options.tokens_per_block,
          .num_pages = pages};
}

Result<uint32_t> sequence_length(const LoadOptions& options, const ModelConfig& config) {
  if (options.max_seq_len == 0) return config.max_positions;
  if (options.max_seq_len <= config.max_positions) return options.max_seq_len;
  return invalid_argument(fmt::format("max_seq_len {} is more than the {} positions the model was made for",
                                      options.max_seq_len, config.max_positions));
}

// One token through the whole model: what is paid once (pages of memory and of files, caches, threads) is paid before
// the first request. What it writes to the KV pool and to a slot, the first user of both overwrites.
Result<void> warm_up(Executor& executor, const ModelConfig& config) {
  const std::vector<TokenId> tokens = {config.bos_token_id.value_or(0)};
  StepPlan plan;
  plan.tokens = tokens;
  plan.positions = {0};
  plan.row_offsets = {0, 1};
  plan.context_lens = {1};
  plan.pages = {0};
  plan.page_offsets = {0, 1};
  plan.slot_starts.push_back({.slot = 0, .sampling = {.temperature = 0.0F}, .prompt = tokens});
  plan.samples.push_back({.row = 0, .slot = 0});
  if (auto done = executor.enqueue(plan); !done) return done;
  StepResult result;
  if (auto done = executor.collect(result); !done) return done;
  if (result.not_finite.at(0) != 0) {
    DYN_WARN("engine", "the first token's logits are not finite: the weights may be damaged");
  }
  return {};
}

// Adds the time since it was made, or since it last did so.
class Laps {
 public:
  void to(double& seconds) {
    const auto now = Clock::now();
    seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  Clock::time_point last_ = Clock::now();
};

// An engine folder decides about path and type by itself; what was asked for besides must agree.
Result<void> check_packed(CpuPathChoice path, WeightDtype dtype, const Weights& weights) {
  const bool packed = weights.layout != MatrixLayout::kRowMajor;
  const bool fits = (path == CpuPathChoice::kAuto || (path == CpuPathChoice::kFast) == packed) &&
                    (dtype == WeightDtype::kAuto || weights.layout == MatrixLayout::kPackedInt8);
  if (fits) return {};
  return invalid_argument(
      fmt::format("it holds {} weights, and --cpu-path or --weight-dtype ask for others: leave them "
                  "out, or build it again with them",
                  to_string(weights.layout)));
}

// From an engine folder or from the model's files.
Result<Weights> weights_of(const LoadOptions& options, const ModelConfig& config, const std::string& directory,
                           unsigned threads, StartTimes& times) {
  std::string engine_dir = options.engine_dir;
  if (options.load_format == LoadFormat::kDummy) {
    if (!engine_dir.empty())
      return invalid_argument("random weights were asked for (dummy), and an engine folder, too");
  } else if (options.load_format == LoadFormat::kAuto && engine_dir.empty() && is_engine_folder(directory) &&
             !has_checkpoint(directory)) {
    engine_dir = directory;
  }
  if (engine_dir.empty()) {
    const auto layout = layout_for(options.cpu_path, options.weight_dtype);
    if (!layout) return layout.error();
    LoadMeter meter(options.progress_bar);
    LoadTimes load_times;
    auto weights = load_weights(config, directory,
                                {.format = options.load_format,
                                 .layout = *layout,
                                 .threads = threads,
                                 .progress = [&](uint64_t done, uint64_t total) { meter.update(done, total); },
                                 .times = &load_times});
    meter.finish();
    times.map_s = load_times.map_s;
    times.pack_s = load_times.pack_s;
    if (!weights) return weights;
    if (auto done = check_loaded(options.cpu_path, options.weight_dtype, *weights); !done) return done.error();
    return weights;
  }

  Laps laps;
  auto folder = resolve_model(engine_dir);  // also tells a TensorRT engine by its files
  if (!folder) return folder.error().with_context("--engine-dir");
  if (!is_engine_folder(*folder)) {
    return Error{Code::kNotFound,
                 fmt::format("--engine-dir: {} has no {}; make one: dynamo-trtllm build --model {} --output "
                             "DIR",
                             *folder, kEngineFile, options.model)};
  }
  auto header = read_engine_folder(*folder);
  if (!header) return header.error().with_context("--engine-dir");
  if (auto same = check_engine_source(*header, directory); !same) {
    return same.error().with_context("--engine-dir: " + *folder);
  }
  auto weights = map_engine_folder(config, *folder, {.threads = threads});
  if (!weights) return weights.error().with_context("--engine-dir");
  if (auto fits = check_packed(options.cpu_path, options.weight_dtype, *weights); !fits) {
    return fits.error().with_context("--engine-dir: " + *folder);
  }
  laps.to(times.map_s);
  return weights;
}

// What is free for the KV pool. Pages of a mapped file count as free, but the steps need them.
uint64_t room_for_kv(const Weights& weights) {
  const uint64_t free = available_memory_bytes();
  return free - std::min<uint64_t>(free, weights.mapping.bytes().size());
}

Result<void> check_gpu(const LoadOptions& options, const ModelConfig& config, const std::string& directory) {
  if (options.cpu_path != CpuPathChoice::kAuto) return unsupported("a path of the CPU is chosen (--cpu-path)");
  if (options.weight_dtype != WeightDtype::kAuto) return unsupported("INT8 weights are built for the CPU alone");
  const bool packed =
      options.load_format == LoadFormat::kAuto && is_engine_folder(directory) && !has_checkpoint(directory);
  if (packed || !options.engine_dir.empty()) return unsupported("an engine folder holds weights packed for the CPU");
  if (auto device = probe_cuda(); !device) return device.error();
  return check_cuda_model(config, executor_limits(options, 0));
}

// True: on the GPU. With kAuto whatever speaks against it is a line of the log, with kCuda an error.
Result<bool> choose_gpu(const LoadOptions& options, const ModelConfig& config, const std::string& directory) {
  if (options.device == DeviceChoice::kCpu) return false;
  auto checked = check_gpu(options, config, directory);
  if (checked) return true;
  if (options.device == DeviceChoice::kCuda) return checked.error().with_context("device cuda");
  DYN_INFO("engine", "device: the CPU ({})", checked.error().message);
  return false;
}

// What the loading of an executor is told and tells.
struct Loading {
  const LoadOptions& options;
  const ModelConfig& config;
  const std::string& directory;
  uint32_t max_seq_len = 0;
  StartTimes times;
  CpuPath cpu_path = CpuPath::kOracle;
  uint64_t weight_bytes = 0;
  std::string place;  // for the log
};

Result<uint32_t> sized_pool(const LoadOptions& options, uint32_t max_seq_len, uint64_t bytes_per_page,
                            uint64_t free_bytes) {
  auto pages = kv_pages(options, max_seq_len, bytes_per_page, free_bytes);
  if (!pages) return pages;
  const uint64_t pool_tokens = uint64_t{*pages} * options.tokens_per_block;
  DYN_INFO("engine", "KV cache: {} blocks of {} tokens, {:.2f} GiB", *pages, options.tokens_per_block,
           gib(*pages * bytes_per_page));
  if (pool_tokens < max_seq_len) {
    DYN_WARN("engine", "max_seq_len is lowered from {} to {}: the KV cache holds no more", max_seq_len, pool_tokens);
  }
  return pages;
}

Result<std::unique_ptr<Executor>> load_on_cpu(Loading& loading) {
  const LoadOptions& options = loading.options;
  const auto threads = static_cast<unsigned>(place_threads(options.threads).size());
  auto weights = weights_of(options, loading.config, loading.directory, threads, loading.times);
  if (!weights) return weights.error();
  loading.cpu_path = path_of(weights->layout);
  loading.weight_bytes = weights->bytes();
  loading.place = fmt::format("{} threads", threads);
  Laps laps;
  const uint64_t scratch = scratch_bytes(
      loading.config, {.max_batch_size = options.max_batch_size, .max_num_tokens = options.max_num_tokens});
  const uint64_t free_bytes = room_for_kv(*weights);
  const auto pages = sized_pool(options, loading.max_seq_len,
                                kv_bytes_per_page(loading.config, options.tokens_per_block, loading.cpu_path),
                                free_bytes - std::min(free_bytes, scratch));
  if (!pages) return pages.error();
  DYN_DEBUG("engine", "activations: {:.2f} GiB", gib(scratch));
  DYN_INFO("engine", "CPU executor: {} path, {} weights, {} kernels, results independent of the batch",
           to_string(loading.cpu_path), to_string(weights->layout), cpu_kernels_name(loading.cpu_path));
  auto executor =
      make_cpu_executor(loading.config, std::move(*weights), executor_limits(options, *pages), {.threads = threads});
  laps.to(loading.times.kv_s);
  return executor;
}

Result<std::unique_ptr<Executor>> load_on_gpu(Loading& loading) {
  LoadOptions options = loading.options;
  options.kv_cache_fraction = options.gpu_memory_fraction;
  LoadMeter meter(options.progress_bar);
  auto loaded =
      load_cuda_executor({.format = options.load_format,
                          .limits = executor_limits(options, 0),
                          .max_seq_len = loading.max_seq_len,
                          .choose_pages =
                              [&](uint64_t free_bytes) {
                                return sized_pool(options, loading.max_seq_len,
                                                  cuda_kv_bytes_per_page(loading.config, options.tokens_per_block),
                                                  free_bytes - std::min(free_bytes, kGpuReserveBytes));
                              },
                          .progress = [&](uint64_t done, uint64_t total) { meter.update(done, total); }},
                         loading.config, loading.directory);
  meter.finish();
  if (!loaded) return loaded.error();
  loading.times.map_s = loaded->device_s;
  loading.times.pack_s = loaded->weights_s;
  loading.times.kv_s = loaded->executor_s;
  loading.weight_bytes = loaded->weight_bytes;
  loading.place = fmt::format("{} ({:.0f} GiB)", loaded->device.name, gib(loaded->device.total_bytes));
  return std::move(loaded->executor);
}

}  // namespace

Result<uint32_t> kv_pages(const LoadOptions& options, uint32_t max_seq_len, uint64_t bytes_per_page,
                          uint64_t free_bytes) {
  const uint64_t pages_of_sequence = (uint64_t{max_seq_len} + options.tokens_per_block - 1) / options.tokens_per_block;
  uint64_t pages = 0;
  if (options.kv_cache_bytes > 0) {
    pages = options.kv_cache_bytes / bytes_per_page;
  } else {
    const auto bytes = static_cast<uint64_t>(static_cast<double>(free_bytes) * options.kv_cache_fraction);
    pages = std::min(bytes / bytes_per_page, kDefaultPoolBatches * options.max_batch_size * pages_of_sequence);
  }
  if (options.kv_cache_max_tokens > 0) pages = std::min(pages, options.kv_cache_max_tokens / options.tokens_per_block);
  // Page numbers are 32 bits with a sign.
  pages = std::min<uint64_t>(pages, std::numeric_limits<PageId>::max());
  if (pages * options.tokens_per_block < 2) {
    return Error{
        Code::kInvalidArgument,
        fmt::format("the KV cache has no room for a single block of {} tokens, {} bytes ({} bytes of memory are "
                    "free): give it more memory, or choose a smaller model",
                    options.tokens_per_block, bytes_per_page, free_bytes)};
  }
  return static_cast<uint32_t>(pages);
}

Result<LoadedEngine> load_engine(const LoadOptions& given) {
  LoadOptions options = given;
  const bool choose_tokens = options.max_num_tokens == 0;
  if (choose_tokens) options.max_num_tokens = std::max(kCpuTokens, options.max_batch_size);
  if (auto checked = check(options); !checked) return checked.error();
  Laps laps;
  auto directory = resolve_model(options.model);
  if (!directory) return directory.error();
  auto config = load_model_config(*directory);
  if (!config) return config.error();
  const auto gpu = choose_gpu(options, *config, *directory);
  if (!gpu) return gpu.error();
  if (choose_tokens && *gpu) options.max_num_tokens = std::max(kGpuTokens, options.max_batch_size);
  const auto max_seq_len = sequence_length(options, *config);
  if (!max_seq_len) return max_seq_len.error();

  Loading loading{.options = options, .config = *config, .directory = *directory, .max_seq_len = *max_seq_len};
  StartTimes& times = loading.times;
  laps.to(times.config_s);
  auto executor = *gpu ? load_on_gpu(loading) : load_on_cpu(loading);
  if (!executor) return executor.error();
  Laps warm_laps;
  if (auto done = warm_up(**executor, *config); !done) return done.error().with_context("warm-up");
  warm_laps.to(times.warm_up_s);
  auto engine = make_native_engine(options.engine, std::move(*executor),
                                   {.vocab_size = config->vocab_size,
                                    .max_seq_len = *max_seq_len,
                                    .window = config->window(),
                                    .long_rope_from = config->long_rope_from()});
  if (!engine) return engine.error();
  DYN_INFO("engine",
           "{} is loaded: {:.2f} GiB of weights, {:.2f} s (configuration {:.2f}, files {:.2f}, weights {:.2f}, KV pool "
           "{:.2f}, first token {:.2f}), {}",
           config->architecture, gib(loading.weight_bytes), times.total_s(), times.config_s, times.map_s, times.pack_s,
           times.kv_s, times.warm_up_s, loading.place);
  return LoadedEngine{std::move(*engine),
                      std::move(*config),
                      std::move(*directory),
                      loading.cpu_path,
                      loading.weight_bytes,
                      times,
                      *gpu};
}

}  // namespace dyn::native
