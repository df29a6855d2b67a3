#include "engine/mock_engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/engine_contract.h"
#include "engine/stepped_engine.h"

namespace dyn::engine {
namespace {

MockOptions options_of(const ContractSetup& setup) {
  return {.step_ms = 0,
          .vocab_size = setup.vocab_size,
          .max_batch_size = setup.max_batch_size,
          .max_seq_len = setup.max_seq_len,
          .kv_block_size = setup.kv_block_size,
          .total_kv_blocks = setup.total_kv_blocks,
          .max_queue_size = setup.max_queue_size};
}

INSTANTIATE_TEST_SUITE_P(Mock, EngineContract,
                         ::testing::Values(ContractEngine{"Hash",
                                                          [](const ContractSetup& setup) {
                                                            return make_mock_engine(options_of(setup));
                                                          }},
                                           ContractEngine{"Clocked",
                                                          [](const ContractSetup& setup) {
                                                            auto options = options_of(setup);
                                                            options.step_ms = 0.2;
                                                            return make_mock_engine(options);
                                                          }}),
                         contract_name);

class MockEngine : public ::testing::Test {
 protected:
  Answer run(const MockOptions& options, Request request) {
    Recorder recorder;
    auto engine = make_mock_engine(options);
    EXPECT_TRUE(engine->start(recorder).ok());
    const RequestId id = request.id;
    EXPECT_TRUE(engine->submit(std::move(request)).ok());
    Answer answer = recorder.ended(id);
    engine->stop();
    return answer;
  }
};

TEST_F(MockEngine, HashTokensAreDocumented) {
  const auto prompt = contract_prompt(6);
  const Answer answer = run({.step_ms = 0}, contract_request(1, prompt, 12));
  ASSERT_EQ(answer.tokens.size(), 12U);
  for (uint32_t i = 0; i < 12; ++i) {
    EXPECT_EQ(answer.tokens[i], mock_token(prompt, i, 32'000));
    EXPECT_GE(answer.tokens[i], 3U);
  }
  EXPECT_NE(run({.step_ms = 0}, contract_request(1, contract_prompt(7), 12)).tokens, answer.tokens);
}

TEST_F(MockEngine, EchoRepeatsThePrompt) {
  const Answer answer = run({.step_ms = 0, .tokens = MockTokens::kEcho}, contract_request(1, {7, 8, 9}, 5));
  EXPECT_EQ(answer.tokens, (std::vector<TokenId>{7, 8, 9, 7, 8}));
}

TEST_F(MockEngine, TimestampsAreOfTheHandOut) {
  const auto base = std::chrono::steady_clock::now();
  const Answer answer =
      run({.step_ms = 1, .tokens = MockTokens::kTimestamp, .timestamp_base = base, .vocab_size = 1U << 31},
          contract_request(1, {7, 8, 9}, 5));
  const auto elapsed = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - base);
  ASSERT_EQ(answer.tokens.size(), 5U);
  for (size_t i = 1; i < 5; ++i) EXPECT_GE(answer.tokens[i], answer.tokens[i - 1]);
  EXPECT_GE(answer.tokens[0], 1000U);  // not before the first step ended
  EXPECT_LE(answer.tokens[4], elapsed.count());
}

TEST_F(MockEngine, OneOutputAStepForAllRunningRequests) {
  auto stepper = make_mock_stepper({.step_ms = 0, .max_batch_size = 3});
  for (RequestId id = 0; id < 5; ++id) stepper->submit(contract_request(id, contract_prompt(4), 2));
  StepOutput out;
  std::vector<size_t> batches;
  while (stepper->alive() > 0) {
    auto turn = stepper->turn(out);
    ASSERT_TRUE(turn.ok());
    if (turn->has_output) batches.push_back(out.requests.size());
  }
  EXPECT_EQ(batches, (std::vector<size_t>{3, 3, 2, 2}));
}

TEST_F(MockEngine, BlocksAreHeldAndAwaited) {
  // 4 blocks of 4 tokens: one request of 6 + 6 tokens reserves 3, so the second one waits.
  auto stepper = make_mock_stepper({.step_ms = 0, .kv_block_size = 4, .total_kv_blocks = 4});
  EXPECT_EQ(stepper->caps().max_seq_len, 16U);
  stepper->submit(contract_request(1, contract_prompt(6), 6));
  stepper->submit(contract_request(2, contract_prompt(6), 6));
  StepOutput out;
  ASSERT_TRUE(stepper->turn(out)->has_output);
  EXPECT_EQ(out.stats.running, 1U);
  EXPECT_EQ(out.stats.waiting, 1U);
  EXPECT_EQ(out.stats.kv_blocks_used, 2U);
  for (int step = 0; step < 2; ++step) ASSERT_TRUE(stepper->turn(out)->has_output);
  EXPECT_EQ(out.stats.kv_blocks_used, 3U);
  stepper->abort(1);
  EXPECT_EQ(stepper->stats().kv_blocks_used, 0U);
  ASSERT_TRUE(stepper->turn(out)->has_output);
  EXPECT_EQ(out.requests[0].id, 2U);
}

TEST_F(MockEngine, DiesWhenTold) {
  Recorder recorder;
  auto engine = make_mock_engine({.step_ms = 0, .die_after_steps = 3});
  ASSERT_TRUE(engine->start(recorder).ok());
  ASSERT_TRUE(engine->submit(contract_request(1, {5}, 100)).ok());
  const auto fatal = recorder.wait_for_death();
  if (!fatal) FAIL() << "on_fatal was not called";
  EXPECT_EQ(fatal->code, Code::kEngineDead);
  EXPECT_EQ(engine->health(), Health::kDead);
  EXPECT_EQ(recorder.answers()[1].tokens.size(), 3U);
  EXPECT_EQ(engine->submit(contract_request(2, {5}, 1)).error().code, Code::kEngineDead);
  EXPECT_FALSE(engine->drain(Recorder::kPatience));  // at once: nothing will come
  engine->stop();
}

TEST_F(MockEngine, StallsWhenTold) {
  Recorder recorder;
  auto engine = make_mock_engine({.step_ms = 0, .stall_after_steps = 3});
  ASSERT_TRUE(engine->start(recorder).ok());
  ASSERT_TRUE(engine->submit(contract_request(1, {5}, 100)).ok());
  recorder.wait_for_tokens(1, 3);
  engine->abort(1);
  EXPECT_FALSE(engine->drain(std::chrono::milliseconds(20)));
  EXPECT_EQ(recorder.answers()[1].tokens.size(), 3U);
  engine->stop();
}

TEST_F(MockEngine, ErrorOfOneRequestOnly) {
  Recorder recorder;
  auto engine = make_mock_engine({.step_ms = 0, .error_on_token = 66});
  ASSERT_TRUE(engine->start(recorder).ok());
  ASSERT_TRUE(engine->submit(contract_request(1, {5, 66}, 4)).ok());
  ASSERT_TRUE(engine->submit(contract_request(2, {5, 67}, 4)).ok());
  const Answer bad = recorder.ended(1);
  EXPECT_EQ(bad.finish, FinishReason::kError);
  ASSERT_TRUE(bad.error.has_value());
  EXPECT_EQ(recorder.ended(2).finish, FinishReason::kLength);
  engine->stop();
}

TEST(Normalize, LogitBiasAndBadWords) {
  Caps caps{.vocab_size = 100, .max_seq_len = 64, .logit_bias = true, .bad_words = true};
  Request request = contract_request(1, {1, 2}, 5);
  request.sampling.logit_bias = {{7, 1.5F}, {8, -std::numeric_limits<float>::infinity()}};
  request.sampling.bad_words = {{5}, {}, {6, 100}, {6, 99}};
  ASSERT_TRUE(normalize(request, caps).ok());
  EXPECT_EQ(request.sampling.bad_words, (std::vector<std::vector<TokenId>>{{5}, {6, 99}}));
  for (const auto& wrong : {std::pair{TokenId{100}, 1.0F}, std::pair{TokenId{7}, std::nanf("")},
                            std::pair{TokenId{7}, std::numeric_limits<float>::infinity()}}) {
    request.sampling.logit_bias = {wrong};
    const auto refused = normalize(request, caps);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().message.find("logit_bias:"), 0U) << refused.error().message;
  }
  caps.logit_bias = caps.bad_words = false;
  request.sampling.logit_bias = {{7, 1.0F}};
  EXPECT_EQ(normalize(request, caps).error().code, Code::kUnsupported);
  request.sampling.logit_bias.clear();
  EXPECT_EQ(normalize(request, caps).error().code, Code::kUnsupported);
  request.sampling.bad_words = {{200}};
  EXPECT_TRUE(normalize(request, caps).ok());
}

}  // namespace
}  // namespace dyn::engine
