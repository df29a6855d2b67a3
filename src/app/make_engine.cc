#include "app/make_engine.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "engine/mock_engine.h"
#include "native/load_engine.h"
#include "native/model/model_dir.h"

namespace dyn::app {

namespace {

// What a frontend may assume of a model whose config.json does not say it.
constexpr uint32_t kMockVocab = 32'000;
constexpr uint32_t kMockContext = 4'096;

engine::MockTokens to_engine(MockTokenKind kind) {
  switch (kind) {
    case MockTokenKind::kEcho:
      return engine::MockTokens::kEcho;
    case MockTokenKind::kTimestamp:
      return engine::MockTokens::kTimestamp;
    case MockTokenKind::kHash:
      break;
  }
  return engine::MockTokens::kHash;
}

MadeEngine make_mock(const WorkerConfig& config, const llm::ModelFiles& files) {
  engine::MockOptions options;
  options.step_ms = config.mock.step_ms;
  options.tokens = to_engine(config.mock.tokens);
  options.vocab_size = config.mock.vocab_size != 0 ? config.mock.vocab_size : files.vocab_size.value_or(kMockVocab);
  options.max_batch_size = config.max_batch_size;
  options.max_seq_len = config.max_seq_len.value_or(files.max_context_length.value_or(kMockContext));
  options.kv_block_size = config.kv_block_size;
  if (config.mock.kv_blocks != 0) options.total_kv_blocks = config.mock.kv_blocks;
  options.max_queue_size = config.max_queue_size;
  options.die_after_steps = config.mock.die_after_steps;
  options.stall_after_steps = config.mock.stall_after_steps;
  options.error_on_token = config.mock.error_on_token;
  return {.engine = engine::make_mock_engine(options), .bos = std::min<llm::TokenId>(1, options.vocab_size - 1)};
}

Result<MadeEngine> make_native(const WorkerConfig& config) {
  native::LoadOptions options;
  options.model = config.model;
  options.engine_dir = config.engine_dir;
  options.load_format = config.load_format == LoadFormat::kDummy         ? native::LoadFormat::kDummy
                        : config.load_format == LoadFormat::kSafetensors ? native::LoadFormat::kSafetensors
                                                                         : native::LoadFormat::kAuto;
  options.cpu_path = config.cpu_path == CpuPath::kOracle ? native::CpuPathChoice::kOracle
                     : config.cpu_path == CpuPath::kFast ? native::CpuPathChoice::kFast
                                                         : native::CpuPathChoice::kAuto;
  options.weight_dtype =
      config.weight_dtype == WeightDtype::kInt8 ? native::WeightDtype::kInt8 : native::WeightDtype::kAuto;
  options.max_batch_size = config.max_batch_size;
  options.device = config.device == Device::kCuda  ? native::DeviceChoice::kCuda
                   : config.device == Device::kCpu ? native::DeviceChoice::kCpu
                                                   : native::DeviceChoice::kAuto;
  options.gpu_memory_fraction = config.free_gpu_memory_fraction;
  options.max_num_tokens = config.max_num_tokens_given ? config.max_num_tokens : 0;
  options.max_seq_len = config.max_seq_len.value_or(0);
  options.tokens_per_block = config.kv_block_size;
  options.kv_cache_bytes = config.kv_cache_bytes.value_or(0);
  options.kv_cache_max_tokens = config.kv_cache_max_tokens.value_or(0);
  options.threads = config.threads;
  options.progress_bar = !config.log.jsonl && ::isatty(STDERR_FILENO) == 1;
  options.engine.capacity_policy = config.capacity_policy == CapacityPolicy::kMaxUtilization
                                       ? native::CapacityPolicy::kMaxUtilization
                                       : native::CapacityPolicy::kGuaranteedNoEvict;
  options.engine.enable_block_reuse = config.enable_block_reuse;
  options.engine.enable_partial_reuse = config.enable_partial_reuse;
  options.engine.record_kv_events = config.publish_kv_events;
  options.engine.max_queue_size = config.max_queue_size;
  auto loaded = native::load_engine(options);
  if (!loaded) return loaded.error();
  return MadeEngine{.engine = std::move(loaded->engine),
                    .device_type = loaded->on_gpu ? "cuda" : "cpu",
                    .bos = loaded->config.bos_token_id.value_or(0)};
}

}  // namespace

Result<llm::ModelFiles> find_card_files(const WorkerConfig& config) {
  auto model = native::resolve_model(config.model);
  if (!model) return model.error();
  std::string tokenizer;
  if (!config.tokenizer.empty()) {
    auto resolved = native::resolve_model(config.tokenizer);
    if (!resolved) return resolved.error().with_context("--tokenizer");
    tokenizer = std::move(*resolved);
  }
  return llm::find_model_files(*model, config.custom_jinja_template, tokenizer);
}

Result<MadeEngine> make_engine(const WorkerConfig& config, const llm::ModelFiles& files) {
  if (config.engine == EngineKind::kMock) return make_mock(config, files);
  return make_native(config);
}

}  // namespace dyn::app
