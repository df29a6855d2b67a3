#include "native/load_engine.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/test_support.h"
#include "engine/engine_contract.h"

namespace dyn::native {
namespace {

using engine::Answer;
using engine::contract_prompt;
using engine::contract_request;
using engine::ContractEngine;
using engine::ContractSetup;
using engine::Recorder;

// A directory with a configuration and no weights: values are made up by LoadFormat::kDummy.
class ModelDirectory {
 public:
  explicit ModelDirectory(uint32_t vocab_size = 1000, uint32_t max_positions = 1'000'000) {
    std::ofstream(dir_ / "config.json") << R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama",
      "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
      "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
      "tie_word_embeddings": true, "torch_dtype": "bfloat16", "eos_token_id": 2, "bos_token_id": 1, "vocab_size": )"
                                        << vocab_size << R"(, "max_position_embeddings": )" << max_positions << "}";
  }
  [[nodiscard]] const std::string& path() const { return dir_.path(); }

 private:
  TempDir dir_;
};

LoadOptions tiny(const ModelDirectory& model) {
  return {.model = model.path(),
          .load_format = LoadFormat::kDummy,
          .max_batch_size = 4,
          .max_num_tokens = 16,
          .max_seq_len = 64,
          .tokens_per_block = 4,
          .kv_cache_bytes = 1 << 20,
          .threads = 2};
}

std::unique_ptr<engine::Engine> make_contract_engine(const ContractSetup& setup) {
  const ModelDirectory model(setup.vocab_size);
  LoadOptions options = tiny(model);
  options.max_batch_size = setup.max_batch_size;
  options.max_seq_len = setup.max_seq_len;
  options.tokens_per_block = setup.kv_block_size;
  options.kv_cache_bytes = uint64_t{1} << 40;
  options.kv_cache_max_tokens = uint64_t{setup.total_kv_blocks} * setup.kv_block_size;
  options.engine.max_queue_size = setup.max_queue_size;
  auto loaded = load_engine(options);
  EXPECT_TRUE(loaded.ok()) << loaded.error().message;
  return loaded.ok() ? std::move(loaded->engine) : nullptr;
}

std::string error_of(const LoadOptions& options) {
  const auto loaded = load_engine(options);
  return loaded.ok() ? "" : loaded.error().message;
}

TEST(LoadEngine, ServesFromADirectory) {
  const ModelDirectory model;
  auto loaded = load_engine(tiny(model));
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->directory, model.path());
  EXPECT_EQ(loaded->config.eos_token_ids, (std::vector<TokenId>{2}));
  EXPECT_EQ(loaded->engine->caps().vocab_size, 1000U);
  EXPECT_GT(loaded->weight_bytes, 1000U);
  EXPECT_EQ(loaded->engine->caps().max_seq_len, 64U);
  EXPECT_GT(loaded->times.pack_s, 0);
  EXPECT_GT(loaded->times.warm_up_s, 0);
  EXPECT_GE(loaded->times.total_s(), loaded->times.pack_s + loaded->times.warm_up_s);
  Recorder recorder;
  ASSERT_TRUE(loaded->engine->start(recorder).ok());
  ASSERT_TRUE(loaded->engine->submit(contract_request(1, contract_prompt(40), 24)).ok());
  const Answer answer = recorder.ended(1);
  EXPECT_EQ(answer.tokens.size(), 24U);
  EXPECT_EQ(answer.finish, llm::FinishReason::kLength);
  loaded->engine->stop();
}

TEST(LoadEngine, RefusesWhatItCannotDoByName) {
  const ModelDirectory model(1000, 128);
  for (auto [member, name] : {std::pair{&LoadOptions::tensor_parallel_size, "tensor_parallel_size"},
                              std::pair{&LoadOptions::pipeline_parallel_size, "pipeline_parallel_size"},
                              std::pair{&LoadOptions::expert_parallel_size, "expert_parallel_size"}}) {
    LoadOptions options = tiny(model);
    options.*member = 2;
    EXPECT_NE(error_of(options).find(name), std::string::npos);
  }
  LoadOptions options = tiny(model);
  options.max_seq_len = 129;
  EXPECT_NE(error_of(options).find("128"), std::string::npos);
  options = tiny(model);
  options.max_num_tokens = 3;
  EXPECT_NE(error_of(options).find("max_num_tokens"), std::string::npos);
  options = tiny(model);
  options.kv_cache_fraction = 1.5;
  EXPECT_NE(error_of(options).find("kv_cache_fraction"), std::string::npos);
  options = tiny(model);
  options.kv_cache_bytes = 100;
  EXPECT_NE(error_of(options).find("KV cache"), std::string::npos);
  options = tiny(model);
  options.model = "/nowhere";
  EXPECT_NE(error_of(options), "");
}

TEST(LoadEngine, ContextIsTheModelsUnlessThePoolIsSmaller) {
  const ModelDirectory model(1000, 128);
  LoadOptions options = tiny(model);
  options.max_seq_len = 0;
  auto loaded = load_engine(options);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->engine->caps().max_seq_len, 128U);
  options.kv_cache_max_tokens = 50;
  loaded = load_engine(options);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(loaded->engine->caps().total_kv_blocks, 12U);
  EXPECT_EQ(loaded->engine->caps().max_seq_len, 48U);
}

TEST(LoadEngine, SizeOfThePool) {
  LoadOptions options{.max_batch_size = 4, .tokens_per_block = 32, .kv_cache_fraction = 0.25};
  // A quarter of what is free, but no more than two batches of longest sequences.
  EXPECT_EQ(*kv_pages(options, 1000, 1000, 400'000), 100U);
  EXPECT_EQ(*kv_pages(options, 1000, 1000, 400'000'000), 2U * 4 * 32);
  options.kv_cache_max_tokens = 1000;
  EXPECT_EQ(*kv_pages(options, 1000, 1000, 400'000'000), 31U);
  options.kv_cache_bytes = 20'000;
  EXPECT_EQ(*kv_pages(options, 1000, 1000, 400'000'000), 20U);
  EXPECT_FALSE(kv_pages(options, 1000, 1'000'000, 400'000'000).ok());
}

}  // namespace
}  // namespace dyn::native

namespace dyn::engine {

INSTANTIATE_TEST_SUITE_P(Cpu, EngineContract,
                         ::testing::Values(ContractEngine{"DummyModel", native::make_contract_engine, true}),
                         contract_name);

}  // namespace dyn::engine
