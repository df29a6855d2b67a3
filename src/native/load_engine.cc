#include "native/load_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "base/log.h"
#include "native/exec/cpu/cpu_executor.h"
#include "native/exec/cuda/cuda_executor.h"
#include "native/exec/cuda/load_cuda.h"
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

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
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

// A line every few seconds while a large checkpoint is read.
LoadProgress progress_log() {
  return [last = Clock::now()](uint64_t done, uint64_t total) mutable {
    if (seconds_since(last) < 5) return;
    last = Clock::now();
    DYN_INFO("engine", "loading weights: {:.1f} of {:.1f} GiB", gib(done), gib(total));
  };
}

Result<void> check_gpu(const LoadOptions& options, const ModelConfig& config) {
  if (options.cpu_path != CpuPathChoice::kAuto) return unsupported("a path of the CPU is chosen (--cpu-path)");
  if (options.weight_dtype != WeightDtype::kAuto) return unsupported("INT8 weights are built for the CPU alone");
  if (auto device = probe_cuda(); !device) return device.error();
  return check_cuda_model(config, executor_limits(options, 0));
}

// True: on the GPU. With kAuto whatever speaks against it is a line of the log, with kCuda an error.
Result<bool> choose_gpu(const LoadOptions& options, const ModelConfig& config) {
  if (options.device == DeviceChoice::kCpu) return false;
  auto checked = check_gpu(options, config);
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
  CpuPath cpu_path = CpuPath::kOracle;
  uint64_t weight_bytes = 0;
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
  const auto layout = layout_for(options.cpu_path, options.weight_dtype);
  if (!layout) return layout.error();
  const auto start = Clock::now();
  auto weights = load_weights(loading.config, loading.directory, options.load_format, progress_log(), *layout);
  if (!weights) return weights.error();
  if (auto done = check_loaded(options.cpu_path, options.weight_dtype, *weights); !done) return done.error();
  loading.cpu_path = path_of(weights->layout);
  loading.weight_bytes = weights->bytes();
  DYN_INFO("engine", "{}: {:.2f} GiB of weights in {:.1f} s", loading.config.architecture, gib(weights->bytes()),
           seconds_since(start));
  const uint64_t scratch = scratch_bytes(
      loading.config, {.max_batch_size = options.max_batch_size, .max_num_tokens = options.max_num_tokens});
  const uint64_t free_bytes = available_memory_bytes();
  const auto pages = sized_pool(options, loading.max_seq_len,
                                kv_bytes_per_page(loading.config, options.tokens_per_block, loading.cpu_path),
                                free_bytes - std::min(free_bytes, scratch));
  if (!pages) return pages.error();
  DYN_DEBUG("engine", "activations: {:.2f} GiB", gib(scratch));
  DYN_INFO("engine", "CPU executor: {} path, {} weights, {} kernels, results independent of the batch",
           to_string(loading.cpu_path), to_string(weights->layout), cpu_kernels_name(loading.cpu_path));
  return make_cpu_executor(loading.config, std::move(*weights), executor_limits(options, *pages),
                           {.threads = options.threads});
}

Result<std::unique_ptr<Executor>> load_on_gpu(Loading& loading) {
  LoadOptions options = loading.options;
  options.kv_cache_fraction = options.gpu_memory_fraction;
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
                          .progress = progress_log()},
                         loading.config, loading.directory);
  if (!loaded) return loaded.error();
  loading.weight_bytes = loaded->weight_bytes;
  DYN_INFO("engine",
           "{} on {} ({:.0f} GiB): device ready in {:.2f} s, {:.2f} GiB of weights in {:.2f} s, pool and graphs in "
           "{:.2f} s",
           loading.config.architecture, loaded->device.name, gib(loaded->device.total_bytes), loaded->device_s,
           gib(loaded->weight_bytes), loaded->weights_s, loaded->executor_s);
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
  auto directory = resolve_model(options.model);
  if (!directory) return directory.error();
  auto config = load_model_config(*directory);
  if (!config) return config.error();
  const auto gpu = choose_gpu(options, *config);
  if (!gpu) return gpu.error();
  if (choose_tokens && *gpu) options.max_num_tokens = std::max(kGpuTokens, options.max_batch_size);
  const auto max_seq_len = sequence_length(options, *config);
  if (!max_seq_len) return max_seq_len.error();

  Loading loading{.options = options, .config = *config, .directory = *directory, .max_seq_len = *max_seq_len};
  auto executor = *gpu ? load_on_gpu(loading) : load_on_cpu(loading);
  if (!executor) return executor.error();
  auto engine = make_native_engine(options.engine, std::move(*executor),
                                   {.vocab_size = config->vocab_size,
                                    .max_seq_len = *max_seq_len,
                                    .window = config->window(),
                                    .long_rope_from = config->long_rope_from()});
  if (!engine) return engine.error();
  return LoadedEngine{std::move(*engine), std::move(*config),   std::move(*directory),
                      loading.cpu_path,   loading.weight_bytes, *gpu};
}

}  // namespace dyn::native
