// Engine files in the shapes that Dynamo 0.8 ... 1.6 ships (examples/backends/trtllm/engine_configs): each loads, or
// says which key cannot be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/options/test_support.h"

namespace dyn::app {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::notices_of;
using testing::resolve;
using testing::TempFile;

Result<Resolved> load(std::string_view yaml) {
  const TempFile file(yaml);
  return resolve({"--extra-engine-args", file.path()});
}

struct Shape {
  const char* name;
  const char* yaml;
  std::vector<std::string> refused;  // keys that the error must name; empty: the file loads
};

const Shape kShapes[] = {
    {"qwen3_agg",
     R"(tensor_parallel_size: 1
moe_expert_parallel_size: 1
enable_attention_dp: false
max_num_tokens: 8192
max_batch_size: 16
trust_remote_code: true
backend: pytorch
enable_chunked_prefill: true
kv_cache_config:
  free_gpu_memory_fraction: 0.85
cuda_graph_config:
  max_batch_size: 16
)",
     {}},
    {"qwen3_prefill",
     R"(tensor_parallel_size: 1
max_num_tokens: 8192
backend: pytorch
disable_overlap_scheduler: true
cache_transceiver_config:
  backend: DEFAULT
)",
     {"cache_transceiver_config.backend: DEFAULT"}},
    {"snapshot",
     R"(max_num_tokens: 1024
max_batch_size: 1
enable_chunked_prefill: false
kv_cache_config:
  free_gpu_memory_fraction: 0.1
)",
     {}},
    {"deepseek_simple",
     R"(backend: pytorch
tensor_parallel_size: 4
moe_expert_parallel_size: 4
pipeline_parallel_size: 1
max_batch_size: 256
max_num_tokens: 8448
max_seq_len: 8448
kv_cache_config:
  free_gpu_memory_fraction: 0.85
  dtype: fp8
cuda_graph_config:
  enable_padding: true
  batch_sizes: [1, 2, 4, 8, 16, 32, 64, 128, 256]
print_iter_log: true
)",
     {"tensor_parallel_size: 4", "moe_expert_parallel_size: 4", "kv_cache_config.dtype: fp8"}},
    {"deepseek_mtp",
     R"(enable_attention_dp: true
kv_cache_config: {free_gpu_memory_fraction: 0.3}
speculative_config:
  decoding_type: MTP
  num_nextn_predict_layers: 1
)",
     {"speculative_config"}},
    {"deepseek_wide_ep",
     R"(tensor_parallel_size: 16
moe_config:
  backend: WIDEEP
  load_balancer: /mnt/engine_configs/eplb.yaml
)",
     {"tensor_parallel_size: 16", "moe_config.load_balancer"}},
    {"gemma3_vswa",
     R"(backend: pytorch
tensor_parallel_size: 1
kv_cache_config:
  max_attention_window:
  - 512
  - 512
  - 32768
)",
     {"kv_cache_config.max_attention_window"}},
    {"gpt_oss_decode",
     R"(enable_attention_dp: true
disable_overlap_scheduler: false
moe_config:
  backend: CUTLASS
cuda_graph_config:
  enable_padding: true
cache_transceiver_config:
  backend: UCX
  max_tokens_in_buffer: 65536
stream_interval: 10
print_iter_log: false
)",
     {"cache_transceiver_config.backend: UCX"}},
    {"llama4_eagle",
     R"(tensor_parallel_size: 4
speculative_config:
  decoding_type: Eagle
  max_draft_len: 3
  speculative_model_dir: nvidia/eagle3
  eagle3_one_model: true
kv_cache_config:
  enable_block_reuse: false
  free_gpu_memory_fraction: 0.5
)",
     {"tensor_parallel_size: 4", "speculative_config"}},
    {"qwen2_vl_agg",
     R"(tensor_parallel_size: 1
max_batch_size: 8
max_num_tokens: 4096
disable_overlap_scheduler: true
kv_cache_config:
  free_gpu_memory_fraction: 0.3
  enable_block_reuse: false
cache_transceiver_config: null
)",
     {}},
    {"qwen3_vl",
     R"(model_kwargs:
  torch_dtype: bfloat16
  text_config:
    torch_dtype: bfloat16
max_batch_size: 8
)",
     {}},
    {"llava",
     R"(model_kwargs:
  text_config: {torch_dtype: float16}
)",
     {"model_kwargs.text_config.torch_dtype: float16"}},
    {"base_map",
     R"(scheduler_config:
  capacity_scheduler_policy: GUARANTEED_NO_EVICT
  dynamic_batch_config:
    enable_batch_size_tuning: true
    enable_max_num_tokens_tuning: false
    dynamic_batch_moving_average_window: 128
return_perf_metrics: true
enable_iter_perf_stats: true
gpus_per_node: 1
max_beam_width: 1
load_format: auto
skip_tokenizer_init: true
num_postprocess_workers: 2
quant_config: null
lora_config: null
guided_decoding_backend: null
)",
     {}},
};

class EngineFiles : public ::testing::TestWithParam<Shape> {};

TEST_P(EngineFiles, LoadsOrNamesTheKey) {
  const Shape& shape = GetParam();
  auto resolved = load(shape.yaml);
  if (shape.refused.empty()) {
    EXPECT_TRUE(resolved) << error_of(resolved);
    return;
  }
  ASSERT_FALSE(resolved);
  for (const std::string& key : shape.refused) EXPECT_THAT(resolved.error().message, HasSubstr(key));
  EXPECT_THAT(resolved.error().message, Not(HasSubstr("unknown engine key")));
}

INSTANTIATE_TEST_SUITE_P(Shipped, EngineFiles, ::testing::ValuesIn(kShapes),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(EngineFile, UnknownKeysGetASuggestionAndALine) {
  EXPECT_THAT(
      error_of(load("max_batch_size: 4\nmax_bach_size: 4\n")),
      HasSubstr("unknown engine key max_bach_size (line 2)\n  why: neither this engine nor TensorRT-LLM's options "
                "have it\n  fix: did you mean max_batch_size?"));
  EXPECT_THAT(error_of(load("kv_cache_config:\n  free_gpu_mem_fraction: 0.5\n")),
              HasSubstr("did you mean kv_cache_config.free_gpu_memory_fraction?"));
  EXPECT_THAT(error_of(load("kv_cache_config:\n  zzzzzzz: 1\n")), HasSubstr("known below kv_cache_config:"));
  EXPECT_THAT(error_of(load("kv-block-size: 16\n")), HasSubstr("its engine key is kv_cache_config.tokens_per_block"));
  EXPECT_THAT(error_of(load("kv_cache_config.dtype: auto\n")), HasSubstr("unknown engine key kv_cache_config.dtype"));
}

TEST(EngineFile, WrongTypesNameKeyLineAndExpectation) {
  EXPECT_THAT(
      error_of(load("max_batch_size: many\n")),
      HasSubstr("max_batch_size (line 1) cannot be used\n  why: expected an integer from 1 to 65536, not 'many'"));
  EXPECT_THAT(error_of(load("max_batch_size: [4]\n")), HasSubstr("not 'a list'"));
  EXPECT_THAT(error_of(load("max_batch_size: true\n")), HasSubstr("not 'true'"));
  EXPECT_THAT(error_of(load("kv_cache_config: 5\n")), HasSubstr("kv_cache_config is an integer"));
  EXPECT_THAT(error_of(load("- a\n")), HasSubstr("the whole is a list"));
  EXPECT_TRUE(load("max_batch_size: '4'\nmax_num_tokens: 8.0\nkv_cache_config: {enable_block_reuse: 0}\n"));
}

TEST(EngineFile, UnreadableFiles) {
  EXPECT_THAT(error_of(resolve({"--extra-engine-args", "/nonexistent/x.yaml"})), HasSubstr("No such file"));
  EXPECT_THAT(error_of(resolve({"--extra-engine-args", "/"})), HasSubstr("--extra-engine-args / cannot be read"));
  EXPECT_THAT(error_of(load("a: [\n")), HasSubstr("is not valid"));
}

TEST(OverrideJson, ErrorsNameTheFlag) {
  EXPECT_THAT(error_of(resolve({"--override-engine-args", "{'a': 1}"})),
              HasSubstr("--override-engine-args is not valid"));
  EXPECT_THAT(error_of(resolve({"--override-engine-args", "[1]"})), HasSubstr("the whole is a list"));
  EXPECT_THAT(error_of(resolve({"--override-engine-args", R"({"max_bach_size":1})"})),
              HasSubstr("did you mean max_batch_size?"));
}

TEST(DottedFlags, UseTheSameTree) {
  auto resolved =
      resolve({"--trtllm.cuda_graph_config.max_batch_size", "16", "--trtllm.cuda_graph_config.enable_padding", "true",
               "--trtllm.kv_cache_config.enable_block_reuse", "false"});
  ASSERT_TRUE(resolved) << error_of(resolved);
  EXPECT_FALSE(resolved->settings.boolean("kv_cache_config.enable_block_reuse"));
  EXPECT_THAT(notices_of(resolved->notices),
              HasSubstr(R"(cuda_graph_config: {"max_batch_size":16,"enable_padding":true} is without effect)"));
  EXPECT_THAT(error_of(resolve({"--trtllm.lora_config.max_loras", "2"})), HasSubstr("LoRA is not built"));
}

}  // namespace
}  // namespace dyn::app
