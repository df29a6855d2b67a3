#include "native/native_engine.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

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

struct StormCase {
  uint32_t depth;
  CapacityPolicy policy;
  uint32_t pages;
};

class NativeStorm : public ::testing::TestWithParam<StormCase> {};

// Many random requests, aborts and stops over a small pool. The executor checks every page and position; the answers
// must be the model's, whatever was preempted, shared, evicted or planned ahead.
TEST_P(NativeStorm, EveryAnswerIsTheModels) {
  const StormCase& param = GetParam();
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
  auto native = stepper({.depth = param.depth, .policy = param.policy, .pages = param.pages, .max_seq_len = 60});
  const uint32_t max_seq_len = native->caps().max_seq_len;

  struct Expected {
    Request request;
    std::vector<TokenId> full;
    std::vector<TokenId> tokens;
    bool aborted = false;
    int ends = 0;
  };
  std::map<engine::RequestId, Expected> all;
  std::vector<engine::RequestId> open;
  engine::RequestId next = 1;
  uint64_t cached = 0;
  StepOutput out;
  while (next < 4000 || native->alive() > 0) {
    while (next < 4000 && native->alive() < 20 && below(2) == 0) {
      Request request{.id = next++};
      const uint32_t length = 1 + below(std::min(40U, max_seq_len - 1));
      request.token_ids = contract_prompt(length, 100 * below(3));
      if (below(2) == 0) request.token_ids.back() = below(kVocab);
      request.max_tokens = 1 + below(max_seq_len - length);
      request.priority = static_cast<int32_t>(below(2));
      request.sampling.temperature = below(2) == 0 ? 0.0F : 1.0F;
      request.sampling.seed = below(3);
      if (below(8) == 0) request.cache_salt = "s";
      Expected expected;
      expected.full = fake_answer(request.token_ids, request.max_tokens, request.sampling, kVocab);
      // Half of them end at a token that the model will choose.
      if (below(2) == 0) {
        const TokenId stop = expected.full[below(request.max_tokens)];
        (below(2) == 0 ? request.stop_token_ids : request.visible_stop_token_ids).push_back(stop);
      }
      expected.request = request;
      open.push_back(request.id);
      all[request.id] = std::move(expected);
      native->submit(std::move(request));
    }
    if (!open.empty() && below(20) == 0) {
      const auto victim = open[below(static_cast<uint32_t>(open.size()))];
      all[victim].aborted = true;
      native->abort(victim);
    }
    auto turn = native->turn(out);
    ASSERT_TRUE(turn.ok()) << turn.error().message;
    ASSERT_EQ(native->blocks().audit(), "");
    if (!turn->has_output) continue;
    for (const auto& output : out.requests) {
      Expected& expected = all.at(output.id);
      ASSERT_FALSE(expected.aborted) << "an output after the abort";
      ASSERT_EQ(expected.ends, 0);
      expected.tokens.insert(expected.tokens.end(), output.tokens.begin(), output.tokens.end());
      if (output.finish == FinishReason::kNone) continue;
      ++expected.ends;
      std::erase(open, output.id);
      cached += output.cached_tokens;

      std::vector<TokenId> wanted = expected.full;
      FinishReason finish = FinishReason::kLength;
      const auto& hidden = expected.request.stop_token_ids;
      const auto& visible = expected.request.visible_stop_token_ids;
      for (size_t i = 0; i < wanted.size(); ++i) {
        const bool is_hidden = std::ranges::count(hidden, wanted[i]) > 0;
        if (!is_hidden && std::ranges::count(visible, wanted[i]) == 0) continue;
        wanted.resize(is_hidden ? i : i + 1);
        finish = FinishReason::kStop;
        break;
      }
      ASSERT_EQ(expected.tokens, wanted) << "request " << output.id;
      ASSERT_EQ(output.finish, finish);
      ASSERT_EQ(output.completion_tokens, wanted.size());
      ASSERT_EQ(output.prompt_tokens, expected.request.token_ids.size());
    }
  }
  for (const auto& [id, expected] : all) ASSERT_TRUE(expected.ends == 1 || expected.aborted) << id;
  // The last step in flight may hold rows of ended requests only.
  while (native->turn(out)->has_output) {
  }
  const engine::Stats stats = native->stats();
  EXPECT_EQ(stats.kv_blocks_used, 0U);
  EXPECT_EQ(stats.running + stats.waiting, 0U);
  EXPECT_EQ(stats.requests_finished + stats.requests_aborted, 3999U);
  EXPECT_GT(cached, 0U);
  if (param.policy == CapacityPolicy::kMaxUtilization) {
    EXPECT_GT(stats.preemptions, 0U);
  } else {
    EXPECT_EQ(stats.preemptions, 0U);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, NativeStorm,
                         ::testing::Values(StormCase{1, CapacityPolicy::kGuaranteedNoEvict, 40},
                                           StormCase{2, CapacityPolicy::kGuaranteedNoEvict, 40},
                                           StormCase{1, CapacityPolicy::kMaxUtilization, 25},
                                           StormCase{2, CapacityPolicy::kMaxUtilization, 25},
                                           StormCase{2, CapacityPolicy::kMaxUtilization, 60}));

}  // namespace
}  // namespace dyn::native
