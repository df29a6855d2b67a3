// The whole engine against transformers in fp32, on small random models: the tokens must be the golden ones however
// prompts are cut into chunks, batched, preempted, computed anew, and found in the prefix cache.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/engine_contract.h"
#include "native/load_engine.h"
#include "native/testing/golden_models.h"

namespace dyn::native {
namespace {

using engine::Answer;
using engine::contract_request;
using engine::Recorder;

struct GoldenPrompt {
  std::vector<TokenId> prompt;
  std::vector<TokenId> tokens;
};

std::vector<GoldenPrompt> golden_prompts(const std::string& model) {
  std::ifstream file(golden_file("random/" + model + ".json"));
  const auto golden = nlohmann::json::parse(file);
  std::vector<GoldenPrompt> prompts;
  for (const auto& entry : golden["prompts"]) {
    prompts.push_back({entry["ids"], entry["float32"]["tokens"]});
  }
  return prompts;
}

// An answer that outgrows the border between the variants of rotary angles: each of its tokens is the one that the text
// up to there gives when it comes as a prompt.
TEST(EngineLongRope, AnAnswerOverTheBorderIsThatOfAFreshPrompt) {
  const auto loaded = load_engine({.model = test_model("random/phi3_longrope"),
                                   .cpu_path = CpuPathChoice::kOracle,
                                   .max_batch_size = 4,
                                   .max_num_tokens = 48,
                                   .tokens_per_block = 8,
                                   .kv_cache_bytes = uint64_t{1} << 30,
                                   .kv_cache_max_tokens = 512,
                                   .threads = 2});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message << "\nscripts/models makes the model.";
  Recorder recorder;
  ASSERT_TRUE(loaded->engine->start(recorder).ok());
  const auto prompt = golden_prompts("phi3_longrope").back().prompt;
  std::vector<TokenId> text(prompt.begin(), prompt.begin() + 58);
  ASSERT_TRUE(loaded->engine->submit(contract_request(0, text, 20)).ok());
  const auto answer = recorder.ended(0).tokens;
  ASSERT_EQ(answer.size(), 20U);
  EXPECT_EQ(loaded->engine->stats().preemptions, 1U);
  for (engine::RequestId i = 0; i < answer.size(); ++i) {
    engine::Request alone = contract_request(100 + i, text, 1);
    alone.cache_salt = std::to_string(i);  // nothing of it is there already
    ASSERT_TRUE(loaded->engine->submit(std::move(alone)).ok());
    EXPECT_EQ(recorder.ended(100 + i).tokens, std::vector{answer[i]}) << "text of " << text.size();
    text.push_back(answer[i]);
  }
  loaded->engine->stop();
}

class EngineGolden : public ::testing::TestWithParam<std::tuple<std::string, CapacityPolicy>> {};

TEST_P(EngineGolden, TokensAreThoseOfTransformers) {
  const auto& [model, policy] = GetParam();
  const auto prompts = golden_prompts(model);
  ASSERT_EQ(prompts.size(), 6U);
  auto loaded =
      load_engine({.model = test_model("random/" + model),
                   .cpu_path = CpuPathChoice::kOracle,
                   .max_batch_size = 4,
                   .max_num_tokens = 48,
                   .tokens_per_block = 8,
                   .kv_cache_bytes = uint64_t{1} << 30,
                   .kv_cache_max_tokens = 256,  // little more than the longest prompt: some must wait or leave
                   .threads = 2,
                   .engine = {.capacity_policy = policy}});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message << "\nscripts/models makes the model.";
  Recorder recorder;
  ASSERT_TRUE(loaded->engine->start(recorder).ok());
  engine::RequestId id = 0;
  for (int round = 0; round < 3; ++round) {
    for (const auto& prompt : prompts) {
      ASSERT_TRUE(
          loaded->engine->submit(contract_request(id++, prompt.prompt, static_cast<uint32_t>(prompt.tokens.size())))
              .ok());
    }
  }
  uint64_t cached = 0;
  for (engine::RequestId i = 0; i < id; ++i) {
    const Answer answer = recorder.ended(i);
    EXPECT_EQ(answer.tokens, prompts[i % prompts.size()].tokens) << "prompt " << i % prompts.size();
    cached += answer.cached_tokens;
  }
  EXPECT_GT(cached, 0U);
  loaded->engine->stop();
}

INSTANTIATE_TEST_SUITE_P(
    Random, EngineGolden,
    ::testing::Combine(::testing::Values("gemma3", "gemma3_linear", "llama3", "mistral", "phi3", "phi3_longrope",
                                         "qwen2", "qwen3", "qwen3_moe", "qwen3_moe_mixed"),
                       ::testing::Values(CapacityPolicy::kGuaranteedNoEvict, CapacityPolicy::kMaxUtilization)));

}  // namespace
}  // namespace dyn::native
