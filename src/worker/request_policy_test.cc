// Every option of a request is honoured or refused by its name.
#include "worker/request_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

namespace dyn::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::StartsWith;

engine::Caps small_caps() {
  engine::Caps caps;
  caps.vocab_size = 300;
  caps.max_seq_len = 64;
  caps.max_logprobs = 20;
  caps.min_p = true;
  caps.penalties = true;
  return caps;
}

llm::Request prompt(size_t tokens) {
  llm::Request request;
  request.model = "tiny";
  request.token_ids.assign(tokens, 7);
  return request;
}

RequestPolicy policy(engine::Caps caps = small_caps()) {
  return {std::move(caps), {.served_model_names = {"tiny", "alias"}}};
}

TEST(RequestPolicy, DefaultsAreGreedyAndTheRestOfTheContext) {
  auto request = policy().to_engine(prompt(10), 5);
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->id, 5U);
  EXPECT_TRUE(request->sampling.greedy());
  EXPECT_EQ(request->max_tokens, 54U);
  EXPECT_EQ(request->min_tokens, 0U);
  EXPECT_FALSE(request->logprobs);
  EXPECT_TRUE(request->stop_token_ids.empty());
}

TEST(RequestPolicy, AnySamplingOptionSwitchesGreedyOff) {
  for (const auto& set : std::vector<std::function<void(llm::SamplingOptions&)>>{
           [](auto& s) { s.top_p = 0.9; }, [](auto& s) { s.top_k = 5; }, [](auto& s) { s.min_p = 0.1; },
           [](auto& s) { s.temperature = 0.7; }}) {
    auto from = prompt(3);
    set(from.sampling);
    auto request = policy().to_engine(from, 1);
    ASSERT_TRUE(request);
    EXPECT_FALSE(request->sampling.greedy());
  }
  auto zero = prompt(3);
  zero.sampling.temperature = 0;
  zero.sampling.top_p = 0.5;
  EXPECT_TRUE(policy().to_engine(zero, 1)->sampling.greedy());
  auto top_p0 = prompt(3);
  top_p0.sampling.top_p = 0.0;
  EXPECT_TRUE(policy().to_engine(top_p0, 1)->sampling.greedy());
  auto off = prompt(3);
  off.sampling.top_k = -1;
  EXPECT_TRUE(policy().to_engine(off, 1)->sampling.greedy());
}

TEST(RequestPolicy, SeedsAreKeptAndDifferWhenAbsent) {
  auto from = prompt(3);
  from.sampling.seed = -5;
  EXPECT_EQ(policy().to_engine(from, 1)->sampling.seed, static_cast<uint64_t>(-5));
  from.sampling.seed.reset();
  EXPECT_NE(policy().to_engine(from, 1)->sampling.seed, policy().to_engine(from, 1)->sampling.seed);
}

TEST(RequestPolicy, StopTokensAreTheUnionWithoutTheVisibleOnes) {
  auto from = prompt(3);
  from.eos_token_ids = {2};
  from.stop.stop_token_ids_hidden = {2, 3};
  from.stop.stop_token_ids = {65};
  from.stop.stop_token_ids_visible = {3};
  auto request = policy().to_engine(from, 1);
  EXPECT_THAT(request->stop_token_ids, ElementsAre(65, 2));
  EXPECT_THAT(request->visible_stop_token_ids, ElementsAre(3));

  from.stop.ignore_eos = true;  // the client's own stop ids still hold
  EXPECT_THAT(policy().to_engine(from, 1)->stop_token_ids, ElementsAre(65));

  from.output.no_stop_trim = true;  // the frontend ends the request
  EXPECT_TRUE(policy().to_engine(from, 1)->stop_token_ids.empty());
  EXPECT_TRUE(policy().to_engine(from, 1)->visible_stop_token_ids.empty());
}

TEST(RequestPolicy, LengthsAreBounded) {
  EXPECT_TRUE(policy().to_engine(prompt(63), 1));
  EXPECT_FALSE(policy().to_engine(prompt(64), 1));
  EXPECT_FALSE(policy().to_engine(prompt(0), 1));
  auto from = prompt(60);
  from.stop.max_tokens = 1000;
  from.stop.min_tokens = 500;  // larger than max_tokens on a prefill leg: must not be refused
  auto request = policy().to_engine(from, 1);
  EXPECT_EQ(request->max_tokens, 4U);
  EXPECT_EQ(request->min_tokens, 4U);
  from.stop.max_tokens = 0;
  EXPECT_EQ(policy().to_engine(from, 1)->max_tokens, 0U);
}

TEST(RequestPolicy, HealthChecksGetTheirOwnCacheSalt) {
  auto from = prompt(3);
  from.is_health_check = true;
  EXPECT_EQ(policy().to_engine(from, 1)->cache_salt, "dynamo-health-check");
  from.routing.cache_salt = "tenant";
  EXPECT_EQ(policy().to_engine(from, 1)->cache_salt, "tenant");
}

struct Refusal {
  const char* option;
  std::function<void(llm::Request&)> set;
};

class Refuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(Refuses, ByName) {
  auto from = prompt(3);
  GetParam().set(from);
  auto caps = small_caps();
  caps.penalties = caps.min_p = false;
  auto request = policy(caps).to_engine(from, 1);
  ASSERT_FALSE(request);
  EXPECT_THAT(request.error().message, StartsWith(std::string(GetParam().option) + ":"));
  EXPECT_TRUE(request.error().code == Code::kUnsupported || request.error().code == Code::kInvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(
    Options, Refuses,
    ::testing::Values(
        Refusal{"model", [](auto& r) { r.model = "other"; }}, Refusal{"n", [](auto& r) { r.sampling.n = 2; }},
        Refusal{"best_of", [](auto& r) { r.sampling.best_of = 3; }},
        Refusal{"use_beam_search", [](auto& r) { r.sampling.use_beam_search = true; }},
        Refusal{"length_penalty", [](auto& r) { r.sampling.length_penalty = 0.5; }},
        Refusal{"guided_decoding",
                [](auto& r) { r.sampling.guided_decoding = llm::GuidedDecoding{.kind = "json", .text = "{}"}; }},
        Refusal{"temperature", [](auto& r) { r.sampling.temperature = -1; }},
        Refusal{"top_p", [](auto& r) { r.sampling.top_p = 1.5; }},
        Refusal{"min_p", [](auto& r) { r.sampling.min_p = 2; }},
        Refusal{"min_p", [](auto& r) { r.sampling.min_p = 0.5; }},
        Refusal{"repetition_penalty", [](auto& r) { r.sampling.repetition_penalty = 0; }},
        Refusal{"repetition_penalty", [](auto& r) { r.sampling.repetition_penalty = 1.2; }},
        Refusal{"presence_penalty", [](auto& r) { r.sampling.presence_penalty = 0.5; }},
        Refusal{"frequency_penalty", [](auto& r) { r.sampling.frequency_penalty = 5; }},
        Refusal{"logprobs", [](auto& r) { r.output.logprobs = 21; }},
        Refusal{"prompt_logprobs", [](auto& r) { r.output.prompt_logprobs = 1; }},
        Refusal{"max_thinking_tokens", [](auto& r) { r.stop.max_thinking_tokens = 7; }},
        Refusal{"token_ids", [](auto& r) { r.token_ids.push_back(300); }},
        Refusal{"token_ids", [](auto& r) { r.token_id_batches = {{1}}; }},
        Refusal{"prompt_embeds", [](auto& r) { r.has_prompt_embeds = true; }},
        Refusal{"multi_modal_data", [](auto& r) { r.has_multi_modal_data = true; }},
        Refusal{"prefill_result", [](auto& r) { r.has_prefill_result = true; }},
        Refusal{"bootstrap_info", [](auto& r) { r.has_bootstrap_info = true; }},
        Refusal{"encoder_result", [](auto& r) { r.has_encoder_result = true; }},
        Refusal{"dp_rank", [](auto& r) { r.routing.dp_rank = 1; }},
        Refusal{"lora_name", [](auto& r) { r.routing.lora_name = "a"; }}),
    [](const auto& info) { return std::string(info.param.option) + "_" + std::to_string(info.index); });

TEST(RequestPolicy, ChoicesAreForFrontendsThatKeepThemApart) {
  auto caps = small_caps();
  caps.multiple_choices = true;
  auto from = prompt(3);
  from.sampling.n = 3;
  EXPECT_THAT(policy(caps).to_engine(from, 1).error().message, StartsWith("n:"));
  from.keeps_choices_apart = true;
  EXPECT_EQ(policy(caps).to_engine(from, 1)->num_choices, 3U);
  from.sampling.best_of = 3;
  EXPECT_TRUE(policy(caps).to_engine(from, 1));
  from.sampling.best_of = 4;
  EXPECT_THAT(policy(caps).to_engine(from, 1).error().message, StartsWith("best_of:"));
  from.sampling.best_of.reset();
  for (const uint32_t n : {0U, 129U}) {
    from.sampling.n = n;
    EXPECT_THAT(policy(caps).to_engine(from, 1).error().message, StartsWith("n:"));
  }
}

TEST(RequestPolicy, PromptLogprobsAreBounded) {
  auto caps = small_caps();
  caps.prompt_logprobs = true;
  caps.max_seq_len = 1'000'000;
  auto from = prompt(30);
  from.output.prompt_logprobs = 0;
  EXPECT_EQ(policy(caps).to_engine(from, 1)->prompt_logprobs, 0U);
  from.output.prompt_logprobs = 21;
  EXPECT_THAT(policy(caps).to_engine(from, 1).error().message, StartsWith("prompt_logprobs:"));
  from = prompt(8192);
  from.output.prompt_logprobs = 2;
  EXPECT_THAT(policy(caps).to_engine(from, 1).error().message, StartsWith("prompt_logprobs:"));
  from.output.prompt_logprobs = 1;
  EXPECT_TRUE(policy(caps).to_engine(from, 1));
}

TEST(RequestPolicy, NeutralValuesAreNoOptions) {
  auto from = prompt(3);
  from.model = "alias";
  from.sampling.n = 1;
  from.sampling.best_of = 1;
  from.sampling.use_beam_search = false;
  from.sampling.length_penalty = 1.0;
  from.sampling.repetition_penalty = 1.0;
  from.sampling.presence_penalty = 0.0;
  from.sampling.guided_decoding = llm::GuidedDecoding{.whitespace_pattern = " ?"};
  from.routing.dp_rank = 0;
  auto caps = small_caps();
  caps.penalties = caps.min_p = false;
  EXPECT_TRUE(policy(caps).to_engine(from, 1));
}

}  // namespace
}  // namespace dyn::worker
