#include "native/native_engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "engine/engine_contract.h"
#include "native/loop/native_stepper.h"
#include "native/loop/stop_check.h"
#include "native/testing/fake_executor.h"

namespace dyn::native {
namespace {

using engine::Answer;
using engine::contract_name;
using engine::contract_prompt;
using engine::contract_request;
using engine::ContractEngine;
using engine::ContractSetup;
using engine::Engine;
using engine::EngineContract;
using engine::Health;
using engine::Recorder;
using engine::Request;
using engine::StepOutput;
using llm::FinishReason;

ContractEngine contract_engine(const std::string& name, uint32_t depth, CapacityPolicy policy, bool reuse = true,
                               uint32_t max_num_tokens = 16) {
  return {name,
          [=](const ContractSetup& setup) {
            const ExecutorLimits limits{.max_batch_size = setup.max_batch_size,
                                        .max_num_tokens = std::max(max_num_tokens, setup.max_batch_size),
                                        .tokens_per_block = setup.kv_block_size,
                                        .num_pages = setup.total_kv_blocks};
            auto made = make_native_engine(
                {.capacity_policy = policy, .enable_block_reuse = reuse, .max_queue_size = setup.max_queue_size},
                std::make_unique<FakeExecutor>(
                    FakeExecutorOptions{.limits = limits, .pipeline_depth = depth, .vocab_size = setup.vocab_size}),
                {.vocab_size = setup.vocab_size, .max_seq_len = setup.max_seq_len});
            EXPECT_TRUE(made.ok());
            return std::move(*made);
          },
          reuse};
}

}  // namespace
}  // namespace dyn::native

namespace dyn::engine {

INSTANTIATE_TEST_SUITE_P(
    Native, EngineContract,
    ::testing::Values(native::contract_engine("Depth1NoEvict", 1, native::CapacityPolicy::kGuaranteedNoEvict),
                      native::contract_engine("Depth2NoEvict", 2, native::CapacityPolicy::kGuaranteedNoEvict),
                      native::contract_engine("Depth1MaxUtilization", 1, native::CapacityPolicy::kMaxUtilization),
                      native::contract_engine("Depth2MaxUtilization", 2, native::CapacityPolicy::kMaxUtilization),
                      native::contract_engine("Depth2WithoutReuse", 2, native::CapacityPolicy::kGuaranteedNoEvict,
                                              false, 5)),
    contract_name);

}  // namespace dyn::engine

namespace dyn::native {
namespace {

TEST(StopCheck, Order) {
  Sequence sequence;
  sequence.prompt_length = 2;
  sequence.max_length = 5;
  sequence.tokens = {1, 2};
  sequence.min_tokens = 1;
  sequence.stop_tokens = {7, 8};
  sequence.num_hidden_stop_tokens = 1;
  EXPECT_EQ(check_stop(sequence, 7).finish, FinishReason::kNone);  // min_tokens
  sequence.tokens.push_back(3);
  EXPECT_FALSE(check_stop(sequence, 7).emit);
  EXPECT_EQ(check_stop(sequence, 7).finish, FinishReason::kStop);
  EXPECT_TRUE(check_stop(sequence, 8).emit);
  EXPECT_TRUE(check_stop(sequence, 8).stop_token);
  EXPECT_EQ(check_stop(sequence, 9).finish, FinishReason::kNone);
  sequence.tokens.push_back(4);
  EXPECT_EQ(check_stop(sequence, 9).finish, FinishReason::kLength);
  EXPECT_EQ(check_stop(sequence, 8).finish, FinishReason::kStop);  // at the limit a stop is still a stop
}

struct FakeSetup {
  uint32_t depth = 1;
  CapacityPolicy policy = CapacityPolicy::kGuaranteedNoEvict;
  uint32_t pages = 64;
  uint32_t max_batch_size = 8;
  uint32_t max_num_tokens = 16;
  uint32_t max_seq_len = 64;
  std::optional<uint64_t> fail_after_steps;
  std::optional<TokenId> not_finite_on_token;
};

constexpr uint32_t kVocab = 1000;

std::unique_ptr<FakeExecutor> fake(const FakeSetup& setup) {
  return std::make_unique<FakeExecutor>(FakeExecutorOptions{.limits = {.max_batch_size = setup.max_batch_size,
                                                                       .max_num_tokens = setup.max_num_tokens,
                                                                       .tokens_per_block = 4,
                                                                       .num_pages = setup.pages},
                                                            .pipeline_depth = setup.depth,
                                                            .vocab_size = kVocab,
                                                            .fail_after_steps = setup.fail_after_steps,
                                                            .not_finite_on_token = setup.not_finite_on_token});
}

std::unique_ptr<NativeStepper> stepper(const FakeSetup& setup) {
  return std::make_unique<NativeStepper>(NativeEngineOptions{.capacity_policy = setup.policy, .warm_up = false},
                                         fake(setup), ModelFacts{kVocab, setup.max_seq_len});
}

TEST(NativeEngine, AnswersAreTheModelsInEveryWay) {
  for (const uint32_t depth : {1U, 2U}) {
    auto native = stepper({.depth = depth});
    const auto prompt = contract_prompt(30);  // two chunks
    native->submit(contract_request(1, prompt, 20));
    StepOutput out;
    std::vector<TokenId> tokens;
    uint64_t calls = 0;
    while (native->alive() > 0) {
      auto turn = native->turn(out);
      ASSERT_TRUE(turn.ok()) << turn.error().message;
      if (!turn->has_output) continue;
      EXPECT_EQ(out.step, ++calls);
      for (const auto& output : out.requests) tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
    }
    EXPECT_EQ(tokens, fake_answer(prompt, 20, {.temperature = 0}, kVocab));
    EXPECT_EQ(calls, 21U);  // two for the prompt, of which the second gives a token
  }
}

TEST(NativeEngine, SeededSamplingIsRepeatable) {
  auto native = stepper({.depth = 2});
  Request request{.id = 1, .token_ids = contract_prompt(5), .max_tokens = 10};
  request.sampling.seed = 42;
  const auto expected = fake_answer(request.token_ids, 10, request.sampling, kVocab);
  native->submit(request);
  StepOutput out;
  std::vector<TokenId> tokens;
  while (native->alive() > 0) {
    auto turn = native->turn(out);
    ASSERT_TRUE(turn.ok()) << turn.error().message;
    if (!turn->has_output) continue;
    for (const auto& output : out.requests) tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
  }
  EXPECT_EQ(tokens, expected);
  EXPECT_NE(tokens, fake_answer(request.token_ids, 10, {.temperature = 0}, kVocab));
}

TEST(NativeEngine, KvEventsComeWithTheStep) {
  auto native = stepper({});
  native->submit(contract_request(1, contract_prompt(9), 8));
  StepOutput out;
  std::vector<BlockHash> blocks;
  while (native->alive() > 0) {
    auto turn = native->turn(out);
    ASSERT_TRUE(turn.ok());
    for (const auto& event : out.kv_events) {
      const auto& stored = std::get<llm::KvBlocksStored>(event);
      EXPECT_EQ(stored.parent.has_value(), !blocks.empty());
      blocks.insert(blocks.end(), stored.blocks.begin(), stored.blocks.end());
    }
  }
  EXPECT_EQ(blocks.size(), 4U);  // KV of 9 + 8 - 1 tokens
}

TEST(NativeEngine, NotFiniteEndsThatRequestOnly) {
  for (const uint32_t depth : {1U, 2U}) {
    Recorder recorder;
    auto made = make_native_engine({}, fake({.depth = depth, .not_finite_on_token = 666}), {kVocab, 64});
    ASSERT_TRUE(made.ok());
    ASSERT_TRUE((*made)->start(recorder).ok());
    auto poisoned = contract_prompt(30);  // two chunks: the first one entered the cache
    poisoned.push_back(666);
    ASSERT_TRUE((*made)->submit(contract_request(1, poisoned, 5)).ok());
    ASSERT_TRUE((*made)->submit(contract_request(2, contract_prompt(9, 100), 5)).ok());
    const Answer bad = recorder.ended(1);
    EXPECT_EQ(bad.finish, FinishReason::kError);
    EXPECT_TRUE(bad.tokens.empty());
    ASSERT_TRUE(bad.error.has_value());
    EXPECT_EQ(recorder.ended(2).tokens, fake_answer(contract_prompt(9, 100), 5, {.temperature = 0}, kVocab));
    // Its blocks are not used again: they may hold NaN too.
    ASSERT_TRUE((*made)->submit(contract_request(3, contract_prompt(30), 5)).ok());
    EXPECT_EQ(recorder.ended(3).cached_tokens, 0U);
    EXPECT_EQ(recorder.ended(3).tokens, fake_answer(contract_prompt(30), 5, {.temperature = 0}, kVocab));
    EXPECT_EQ((*made)->health(), Health::kReady);
    (*made)->stop();
  }
}

TEST(NativeEngine, AFailingExecutorIsFatal) {
  for (const uint32_t depth : {1U, 2U}) {
    Recorder recorder;
    auto made = make_native_engine({.warm_up = false}, fake({.depth = depth, .fail_after_steps = 3}), {kVocab, 64});
    ASSERT_TRUE(made.ok());
    ASSERT_TRUE((*made)->start(recorder).ok());
    ASSERT_TRUE((*made)->submit(contract_request(1, contract_prompt(4), 20)).ok());
    const auto fatal = recorder.wait_for_death();
    ASSERT_TRUE(fatal.has_value());
    EXPECT_EQ(fatal->code, Code::kEngineDead);
    EXPECT_NE(fatal->message.find("told to fail"), std::string::npos);
    EXPECT_EQ((*made)->health(), Health::kDead);
    EXPECT_EQ((*made)->submit(contract_request(2, {1}, 1)).error().code, Code::kEngineDead);
    (*made)->stop();
  }
}

TEST(NativeEngine, AFailedWarmUpIsAnErrorOfStart) {
  Recorder recorder;
  auto made = make_native_engine({}, fake({.fail_after_steps = 0}), {kVocab, 64});
  ASSERT_TRUE(made.ok());
  EXPECT_FALSE((*made)->start(recorder).ok());
  EXPECT_EQ((*made)->health(), Health::kDead);
}

TEST(NativeEngine, WarmUpLeavesNoTrace) {
  Recorder recorder;
  auto made = make_native_engine({}, fake({.depth = 2}), {kVocab, 64});
  ASSERT_TRUE(made.ok());
  ASSERT_TRUE((*made)->start(recorder).ok());
  EXPECT_EQ((*made)->stats().steps, 0U);
  EXPECT_EQ((*made)->stats().requests_finished, 0U);
  EXPECT_EQ((*made)->stats().kv_blocks_used, 0U);
  EXPECT_EQ(recorder.calls(), 0U);
  (*made)->stop();
}

TEST(NativeEngine, ImpossibleSizesAreRefused) {
  EXPECT_FALSE(make_native_engine({}, fake({.max_batch_size = 8, .max_num_tokens = 4}), {kVocab, 64}).ok());
  EXPECT_FALSE(make_native_engine({}, fake({.pages = 0}), {kVocab, 64}).ok());
  EXPECT_FALSE(make_native_engine({}, fake({.depth = 3}), {kVocab, 64}).ok());
  EXPECT_FALSE(make_native_engine({}, fake({}), {0, 64}).ok());
  // The context is never longer than what the pool can hold.
  EXPECT_EQ((*make_native_engine({}, fake({.pages = 3}), {kVocab, 64}))->caps().max_seq_len, 12U);
}

// Runs a stepper until it has nothing to do; the answers by choice.
std::map<uint32_t, std::vector<TokenId>> run_all(NativeStepper& native, uint64_t* steps = nullptr) {
  std::map<uint32_t, std::vector<TokenId>> answers;
  StepOutput out;
  while (native.alive() > 0) {
    auto turn = native.turn(out);
    EXPECT_TRUE(turn.ok()) << turn.error().message;
    if (!turn.ok()) break;
    if (!turn->has_output) continue;
    for (const auto& output : out.requests) {
      auto& tokens = answers[output.choice];
      tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
    }
    if (steps != nullptr) *steps = out.step;
  }
  return answers;
}

Request request_with_choices(uint32_t choices) {
  Request request{.id = 1, .token_ids = contract_prompt(14), .max_tokens = 6, .num_choices = choices};
  request.sampling.seed = 40;
  return request;
}

std::vector<TokenId> choice_of(const Request& request, uint32_t choice) {
  engine::SamplingParams sampling = request.sampling;
  sampling.seed += choice;
  return fake_answer(request.token_ids, request.max_tokens, sampling, kVocab);
}

TEST(NativeEngine, ChoicesShareOnePrefill) {
  for (const uint32_t depth : {1U, 2U}) {
    auto native = stepper({.depth = depth, .max_num_tokens = 16});
    const Request request = request_with_choices(4);
    native->submit(request);
    StepOutput out;
    while (out.requests.empty()) ASSERT_TRUE(native->turn(out).ok());
    EXPECT_EQ(out.step, 1U);
    EXPECT_EQ(out.requests.size(), 4U) << "all begin with a sample of the prompt's last row";
    EXPECT_EQ(native->stats().running, 4U);
    EXPECT_EQ(native->blocks().stats().pages_referenced, 3U + 4U) << "three full pages, a last one each";
    uint64_t steps = 0;
    auto rest = run_all(*native, &steps);
    EXPECT_EQ(steps, 6U);
    for (uint32_t i = 0; i < 4; ++i) {
      const auto wanted = choice_of(request, i);
      EXPECT_EQ(rest[i], std::vector<TokenId>(wanted.begin() + 1, wanted.end()));
    }
    EXPECT_EQ(native->stats().prompt_tokens, 14U);
    EXPECT_EQ(native->stats().requests_finished, 1U);
    EXPECT_EQ(native->blocks().stats().pages_referenced, 0U);
  }
}

TEST(NativeEngine, ChoicesWithoutRoomWait) {
  // More choices than slots; and none of them fits beside another.
  for (const FakeSetup& setup : {FakeSetup{.max_batch_size = 2}, FakeSetup{.depth = 2, .max_batch_size = 2},
                                 FakeSetup{.pages = 5, .max_seq_len = 20}}) {
    auto native = stepper(setup);
    const Request request = request_with_choices(5);
    native->submit(request);
    const auto answers = run_all(*native);
    for (uint32_t i = 0; i < 5; ++i) EXPECT_EQ(answers.at(i), choice_of(request, i));
    EXPECT_EQ(native->stats().requests_finished, 1U);
  }
}

TEST(NativeEngine, AbortEndsAllChoices) {
  for (const uint32_t turns : {0U, 1U, 4U}) {
    auto native = stepper({.depth = 2, .max_batch_size = 3});
    native->submit(request_with_choices(5));
    StepOutput out;
    for (uint32_t i = 0; i < turns; ++i) ASSERT_TRUE(native->turn(out).ok());
    native->abort(1);
    EXPECT_EQ(native->alive(), 0U);
    while (native->turn(out)->has_output) EXPECT_TRUE(out.requests.empty());
    const engine::Stats stats = native->stats();
    EXPECT_EQ(stats.running + stats.waiting, 0U);
    EXPECT_EQ(stats.kv_blocks_used, 0U);
    EXPECT_EQ(stats.requests_aborted, 1U);
  }
}

TEST(NativeEngine, AnErrorOfOneChoiceEndsTheRequest) {
  const Request request = request_with_choices(3);
  auto native = stepper({.not_finite_on_token = choice_of(request, 1)[2]});
  native->submit(request);
  StepOutput out;
  int errors = 0;
  while (native->alive() > 0) {
    ASSERT_TRUE(native->turn(out).ok());
    for (const auto& output : out.requests) {
      EXPECT_EQ(errors, 0);
      if (output.finish != FinishReason::kError) continue;
      ++errors;
      EXPECT_EQ(output.choice, 1U);
      EXPECT_FALSE(output.more_choices);
    }
  }
  EXPECT_EQ(errors, 1);
  EXPECT_EQ(native->blocks().stats().pages_referenced, 0U);
}

TEST(NativeEngine, PromptLogprobsAreNotSkippedByReuse) {
  auto native = stepper({.max_num_tokens = 8});
  native->submit(contract_request(1, contract_prompt(21), 2));
  run_all(*native);
  Request request = contract_request(2, contract_prompt(21), 2);
  request.prompt_logprobs = 2;
  native->submit(request);
  StepOutput out;
  std::vector<engine::TopLogprob> scores;
  while (native->alive() > 0) {
    ASSERT_TRUE(native->turn(out).ok());
    for (const auto& output : out.requests) {
      EXPECT_EQ(output.prompt_logprobs.empty(), output.finish == FinishReason::kNone) << "with the last output";
      EXPECT_EQ(output.cached_tokens, 0U);
      scores.insert(scores.end(), output.prompt_logprobs.begin(), output.prompt_logprobs.end());
    }
  }
  const auto wanted = fake_prompt_logprobs(request.token_ids);
  ASSERT_EQ(scores.size(), 20U * 3U);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(scores[i * 3].logprob, wanted[i]);
}

// The cached keys of a text that outgrew the border are of no use, neither to itself nor to others.
TEST(NativeEngine, LongRopeIsComputedAnew) {
  for (const uint32_t depth : {1U, 2U}) {
    FakeExecutorOptions options{
        .limits = {.max_batch_size = 4, .max_num_tokens = 16, .tokens_per_block = 4, .num_pages = 64},
        .pipeline_depth = depth,
        .vocab_size = kVocab,
        .long_rope_from = 20};
    NativeStepper native({.warm_up = false}, std::make_unique<FakeExecutor>(options),
                         {.vocab_size = kVocab, .max_seq_len = 64, .long_rope_from = 20});
    for (int round = 0; round < 2; ++round) {
      native.submit(contract_request(1, contract_prompt(16), 12));
      EXPECT_EQ(run_all(native).at(0), fake_answer(contract_prompt(16), 12, {.temperature = 0}, kVocab, 20));
    }
    EXPECT_EQ(native.stats().preemptions, 2U);
    native.submit(contract_request(1, contract_prompt(30), 3));
    EXPECT_EQ(run_all(native).at(0), fake_answer(contract_prompt(30), 3, {.temperature = 0}, kVocab, 20));
    EXPECT_EQ(native.stats().preemptions, 2U) << "long from its start on";
    EXPECT_GT(native.stats().prompt_tokens_cached, 0U);
  }
}

TEST(NativeEngine, AWindowBoundsThePagesOfALongAnswer) {
  FakeExecutorOptions options{
      .limits = {.max_batch_size = 4, .max_num_tokens = 16, .tokens_per_block = 4, .num_pages = 64},
      .vocab_size = kVocab,
      .window = 10};
  NativeStepper native({.warm_up = false}, std::make_unique<FakeExecutor>(options),
                       {.vocab_size = kVocab, .max_seq_len = 200, .window = 10});
  native.submit(contract_request(1, contract_prompt(5), 150));
  StepOutput out;
  uint64_t most = 0;
  while (native.alive() > 0) {
    ASSERT_TRUE(native.turn(out).ok());
    most = std::max(most, native.blocks().stats().pages_referenced);
  }
  EXPECT_LE(most, 4U);
}

}  // namespace
}  // namespace dyn::native
