#include "engine/engine_contract.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <thread>

namespace dyn::engine {
namespace {

TEST_P(EngineContract, CapsTellTheSetup) {
  launch({.max_batch_size = 3, .kv_block_size = 8, .total_kv_blocks = 40});
  const Caps caps = engine_->caps();
  EXPECT_FALSE(caps.name.empty());
  EXPECT_EQ(caps.vocab_size, 1000U);
  EXPECT_EQ(caps.max_batch_size, 3U);
  EXPECT_EQ(caps.kv_block_size, 8U);
  EXPECT_EQ(caps.total_kv_blocks, 40U);
  EXPECT_EQ(caps.max_seq_len, 64U);
  EXPECT_EQ(engine_->stats().kv_blocks_total, 40U);
}

TEST_P(EngineContract, MaxTokensIsObeyedAndCounted) {
  launch();
  for (const uint32_t max_tokens : {1U, 2U, 9U}) {
    const Answer answer = run(contract_request(max_tokens, contract_prompt(7), max_tokens));
    EXPECT_EQ(answer.finish, FinishReason::kLength);
    EXPECT_EQ(answer.tokens.size(), max_tokens);
    EXPECT_EQ(answer.completion_tokens, max_tokens);
    EXPECT_EQ(answer.prompt_tokens, 7U);
    EXPECT_FALSE(answer.stop_token.has_value());
    EXPECT_TRUE(answer.logprobs.empty());
    for (const TokenId token : answer.tokens) EXPECT_LT(token, 1000U);
  }
  expect_empty();
  EXPECT_EQ(engine_->stats().tokens_generated, 12U);
  EXPECT_EQ(engine_->stats().requests_finished, 3U);
}

TEST_P(EngineContract, EndOfContextIsLength) {
  launch({.max_seq_len = 16});
  const Answer answer = run(contract_request(1, contract_prompt(10), 1000));
  EXPECT_EQ(answer.finish, FinishReason::kLength);
  EXPECT_EQ(answer.tokens.size(), 6U);
  const Answer last = run(contract_request(2, contract_prompt(15), 1000));
  EXPECT_EQ(last.tokens.size(), 1U);
}

TEST_P(EngineContract, ImpossibleRequestsAreRefused) {
  launch({.max_seq_len = 16});
  const auto refused = [&](Request request) {
    const auto result = engine_->submit(std::move(request));
    return !result && result.error().code == Code::kInvalidArgument && !result.error().message.empty();
  };
  EXPECT_TRUE(refused(contract_request(1, {}, 5)));
  EXPECT_TRUE(refused(contract_request(2, contract_prompt(16), 1)));
  EXPECT_TRUE(refused(contract_request(3, {5, 1000}, 1)));
  EXPECT_TRUE(refused(contract_request(4, {5}, 0)));
  Request greedy_for_logprobs = contract_request(5, {5}, 1);
  greedy_for_logprobs.logprobs = engine_->caps().max_logprobs + 1;
  EXPECT_TRUE(refused(greedy_for_logprobs));
  // None of them hurt the engine.
  EXPECT_EQ(run(contract_request(6, {5}, 3)).tokens.size(), 3U);
}

TEST_P(EngineContract, HiddenStopTokenIsLeftOut) {
  launch();
  const Answer reference = run(contract_request(1, contract_prompt(5), 10));
  const TokenId stop = reference.tokens[4];
  const auto first = std::find(reference.tokens.begin(), reference.tokens.end(), stop) - reference.tokens.begin();
  Request request = contract_request(2, contract_prompt(5), 10);
  request.stop_token_ids = {999'999, stop};
  const Answer answer = run(request);
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.stop_token, stop);
  EXPECT_EQ(answer.tokens, std::vector<TokenId>(reference.tokens.begin(), reference.tokens.begin() + first));
  EXPECT_EQ(answer.completion_tokens, answer.tokens.size());
}

TEST_P(EngineContract, VisibleStopTokenIsTheLast) {
  launch();
  const Answer reference = run(contract_request(1, contract_prompt(5), 10));
  const TokenId stop = reference.tokens[4];
  const auto first = std::find(reference.tokens.begin(), reference.tokens.end(), stop) - reference.tokens.begin();
  Request request = contract_request(2, contract_prompt(5), 10);
  request.visible_stop_token_ids = {stop};
  const Answer answer = run(request);
  EXPECT_EQ(answer.finish, FinishReason::kStop);
  EXPECT_EQ(answer.stop_token, stop);
  EXPECT_EQ(answer.tokens, std::vector<TokenId>(reference.tokens.begin(), reference.tokens.begin() + first + 1));
  EXPECT_EQ(answer.completion_tokens, answer.tokens.size());
}

TEST_P(EngineContract, MinTokensKeepsStopTokensAway) {
  launch();
  const Answer reference = run(contract_request(1, contract_prompt(5), 10));
  for (const bool visible : {false, true}) {
    Request request = contract_request(visible ? 2 : 3, contract_prompt(5), 10);
    request.min_tokens = 6;
    (visible ? request.visible_stop_token_ids : request.stop_token_ids) = {reference.tokens[0], reference.tokens[2]};
    const Answer answer = run(request);
    EXPECT_GE(answer.tokens.size(), 6U);
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_NE(answer.tokens[i], reference.tokens[0]);
      EXPECT_NE(answer.tokens[i], reference.tokens[2]);
    }
  }
}

TEST_P(EngineContract, MinTokensEndsWhereItSays) {
  launch();
  const Answer reference = run(contract_request(1, contract_prompt(5), 10));
  const auto begin = reference.tokens.begin();
  const TokenId stop = reference.tokens[4];
  const auto first = static_cast<uint32_t>(std::find(begin, reference.tokens.end(), stop) - begin);
  Request request = contract_request(2, contract_prompt(5), 10);
  request.stop_token_ids = {stop};
  request.min_tokens = first;  // reached just before the stop token
  EXPECT_EQ(run(request).tokens.size(), first);
  request.id = 3;
  request.min_tokens = first + 1;
  const Answer longer = run(request);
  ASSERT_GT(longer.tokens.size(), first);
  EXPECT_NE(longer.tokens[first], stop);
}

TEST_P(EngineContract, LogprobsHaveTheWidthAskedFor) {
  launch();
  for (const uint32_t width : {0U, 1U, 5U}) {
    Request request = contract_request(width + 1, contract_prompt(5), 4);
    request.logprobs = width;
    const Answer answer = run(request);
    ASSERT_EQ(answer.logprobs.size(), 4U);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_LE(answer.logprobs[i], 0.0F);
      ASSERT_EQ(answer.top[i].size(), width);
      if (width == 0) continue;
      // Greedy: the best alternative is the chosen one; ranks count from 1, logprobs descend.
      EXPECT_EQ(answer.top[i][0].id, answer.tokens[i]);
      for (uint32_t k = 0; k < width; ++k) {
        EXPECT_EQ(answer.top[i][k].rank, k + 1);
        if (k > 0) EXPECT_LE(answer.top[i][k].logprob, answer.top[i][k - 1].logprob);
      }
    }
  }
}

TEST_P(EngineContract, RepeatedPromptTellsItsCachedTokens) {
  launch();
  const Answer first = run(contract_request(1, contract_prompt(16), 6));
  const Answer second = run(contract_request(2, contract_prompt(16), 6));
  EXPECT_EQ(first.cached_tokens, 0U);
  // Whole blocks of 4, perhaps the head of the last one; the last token of a prompt is always computed.
  EXPECT_GE(second.cached_tokens, GetParam().reuses_prefixes ? 12U : 0U);
  EXPECT_LE(second.cached_tokens, GetParam().reuses_prefixes ? 15U : 0U);
  EXPECT_EQ(first.tokens, second.tokens);
  EXPECT_EQ(engine_->stats().prompt_tokens, 32U);
  EXPECT_EQ(engine_->stats().prompt_tokens_cached, second.cached_tokens);
  expect_empty();
}

TEST_P(EngineContract, AnswersDoNotDependOnNeighbours) {
  launch();
  std::vector<Answer> alone;
  alone.reserve(8);
  for (RequestId id = 0; id < 8; ++id) {
    alone.push_back(run(contract_request(id, contract_prompt(3 + id, static_cast<TokenId>(100 * id)), 10)));
  }
  for (RequestId id = 0; id < 8; ++id) {
    accept(contract_request(100 + id, contract_prompt(3 + id, static_cast<TokenId>(100 * id)), 10));
  }
  for (RequestId id = 0; id < 8; ++id) EXPECT_EQ(recorder_.ended(100 + id).tokens, alone[id].tokens) << id;
}

TEST_P(EngineContract, AbortFreesBlocksAndNothingFollows) {
  std::atomic<bool> late{false};
  recorder_.before_step = [&](const StepOutput& step) {
    for (const RequestOutput& output : step.requests) {
      if (output.id == 1 && step.stats.requests_aborted > 0) late = true;
    }
  };
  ContractSetup setup;
  setup.max_seq_len = 1'000'000;
  setup.total_kv_blocks = 300'000;
  launch(setup);
  accept(contract_request(1, contract_prompt(9), 1'000'000));
  recorder_.wait_for_tokens(1, 3);
  EXPECT_GT(engine_->stats().kv_blocks_used, 0U);
  engine_->abort(1);
  expect_empty();
  EXPECT_EQ(engine_->stats().requests_aborted, 1U);
  run(contract_request(2, contract_prompt(9), 5));
  EXPECT_FALSE(late);
  EXPECT_EQ(recorder_.answers()[1].ends, 0);
  engine_->abort(1);    // known no more
  engine_->abort(2);    // ended
  engine_->abort(777);  // never known
  run(contract_request(3, contract_prompt(9), 5));
  EXPECT_EQ(engine_->stats().requests_aborted, 1U);
}

TEST_P(EngineContract, AbortOfAWaitingRequest) {
  Latch latch;
  recorder_.before_step = [&](const StepOutput&) { latch.wait(); };
  launch({.max_batch_size = 1});
  accept(contract_request(1, contract_prompt(4), 8));
  latch.wait_until_held();
  accept(contract_request(2, contract_prompt(4), 8));
  accept(contract_request(3, contract_prompt(4), 8));
  engine_->abort(2);
  latch.open();
  recorder_.ended(1);
  recorder_.ended(3);
  EXPECT_TRUE(recorder_.answers()[2].tokens.empty());
  EXPECT_EQ(engine_->stats().requests_aborted, 1U);
}

TEST_P(EngineContract, OverloadIsAnErrorOfTheSubmit) {
  Latch latch;
  recorder_.before_step = [&](const StepOutput&) { latch.wait(); };
  launch({.max_batch_size = 2, .max_queue_size = 3});
  accept(contract_request(0, contract_prompt(4), 20));
  latch.wait_until_held();
  for (RequestId id = 1; id < 5; ++id) accept(contract_request(id, contract_prompt(4), 20));
  const auto refused = engine_->submit(contract_request(5, contract_prompt(4), 20));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kOverloaded);
  latch.open();
  for (RequestId id = 0; id < 5; ++id) EXPECT_EQ(recorder_.ended(id).tokens.size(), 20U);
  // The place is free again by the time the end is seen.
  EXPECT_EQ(run(contract_request(6, contract_prompt(4), 20)).tokens.size(), 20U);
}

TEST_P(EngineContract, HigherPriorityGoesFirst) {
  Latch latch;
  recorder_.before_step = [&](const StepOutput&) { latch.wait(); };
  launch({.max_batch_size = 1});
  accept(contract_request(1, contract_prompt(4), 5));
  latch.wait_until_held();
  for (const auto& [id, priority] : std::vector<std::pair<RequestId, int>>{{2, 0}, {3, 0}, {4, 5}, {5, -1}, {6, 5}}) {
    Request request = contract_request(id, contract_prompt(4), 5);
    request.priority = priority;
    accept(std::move(request));
  }
  latch.open();
  recorder_.ended(5);
  EXPECT_EQ(recorder_.end_order(), (std::vector<RequestId>{1, 4, 6, 2, 3, 5}));
}

TEST_P(EngineContract, DrainLetsRunningRequestsEnd) {
  launch();
  for (RequestId id = 0; id < 20; ++id) accept(contract_request(id, contract_prompt(4), 15));
  EXPECT_TRUE(engine_->drain(Recorder::kPatience));
  EXPECT_EQ(recorder_.end_order().size(), 20U);
  EXPECT_EQ(engine_->health(), Health::kDraining);
  const auto refused = engine_->submit(contract_request(99, contract_prompt(4), 1));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::kUnavailable);
}

TEST_P(EngineContract, DrainGivesUpAtTheDeadline) {
  Latch latch;
  recorder_.before_step = [&](const StepOutput&) { latch.wait(); };
  launch();
  accept(contract_request(1, contract_prompt(4), 15));
  latch.wait_until_held();
  EXPECT_FALSE(engine_->drain(std::chrono::milliseconds(5)));
  latch.open();
  EXPECT_TRUE(engine_->drain(Recorder::kPatience));
  EXPECT_EQ(recorder_.ended(1).tokens.size(), 15U);
}

TEST_P(EngineContract, StopDropsLiveRequests) {
  ContractSetup setup;
  setup.max_seq_len = 1'000'000;
  setup.total_kv_blocks = 300'000;
  launch(setup);
  for (RequestId id = 0; id < 9; ++id) accept(contract_request(id, contract_prompt(4), 1'000'000));
  recorder_.wait_for_tokens(0, 2);
  engine_->stop();
  const uint64_t calls = recorder_.calls();
  engine_->stop();
  EXPECT_FALSE(engine_->submit(contract_request(10, contract_prompt(4), 1)).ok());
  engine_.reset();
  EXPECT_EQ(recorder_.calls(), calls);
  for (const auto& [id, answer] : recorder_.answers()) EXPECT_EQ(answer.ends, 0) << id;
}

TEST_P(EngineContract, StopBeforeStartAndUnused) {
  auto engine = GetParam().make({});
  EXPECT_EQ(engine->submit(contract_request(1, {1}, 1)).error().code, Code::kUnavailable);
  engine->stop();
  engine.reset();
  launch();  // started, nothing submitted, torn down
}

TEST_P(EngineContract, SubmitWakesAnIdleEngine) {
  launch();
  for (RequestId id = 0; id < 50; ++id) {
    EXPECT_EQ(run(contract_request(id, contract_prompt(4), 2)).tokens.size(), 2U);
    if (id % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

TEST_P(EngineContract, ObserverMaySubmitAndAbort) {
  std::atomic<RequestId> next{2};
  recorder_.before_step = [&](const StepOutput& step) {
    for (const RequestOutput& output : step.requests) {
      if (output.finish == FinishReason::kNone || next > 30) continue;
      // The queue is as long as nothing: the place of the one that ended is the only one.
      if (!engine_->submit(contract_request(next++, contract_prompt(4), 3)).ok()) ADD_FAILURE() << "no place";
      engine_->abort(output.id);
    }
  };
  launch({.max_batch_size = 1, .max_queue_size = 0});
  accept(contract_request(1, contract_prompt(4), 3));
  EXPECT_EQ(recorder_.ended(30).tokens.size(), 3U);
}

// Thousands of random submits and aborts from several threads: every accepted request ends exactly once, or was
// aborted.
TEST_P(EngineContract, RandomSubmitsAndAbortsFromSeveralThreads) {
  constexpr unsigned kThreads = 4;
  constexpr unsigned kRequests = 750;
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  launch({.max_batch_size = 8, .total_kv_blocks = 48, .max_queue_size = 100});
  std::mutex mutex;
  std::vector<std::set<RequestId>> accepted(kThreads);
  std::set<RequestId> aborted;
  std::vector<std::thread> threads;
  threads.reserve(kThreads);
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(seed + t);
      const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
      for (unsigned i = 0; i < kRequests; ++i) {
        const RequestId id = RequestId{t} * kRequests + i;
        Request request =
            contract_request(id, contract_prompt(1 + below(30), static_cast<TokenId>(below(5))), 1 + below(20));
        request.priority = static_cast<int32_t>(below(3));
        if (below(3) == 0) request.stop_token_ids = {below(1000), below(1000), below(1000)};
        if (below(5) == 0) request.logprobs = below(4);
        auto result = engine_->submit(std::move(request));
        while (!result && result.error().code == Code::kOverloaded) {
          std::this_thread::sleep_for(std::chrono::microseconds(200));
          result = engine_->submit(contract_request(id, contract_prompt(1 + below(30)), 1 + below(20)));
        }
        if (!result) {
          ADD_FAILURE() << result.error().message;
          return;
        }
        accepted[t].insert(id);
        if (below(4) == 0) {
          // Some of its own, some of any thread.
          const RequestId victim = below(2) == 0 ? id : below(kThreads * kRequests);
          std::lock_guard lock(mutex);
          aborted.insert(victim);
          engine_->abort(victim);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(engine_->drain(Recorder::kPatience));
  engine_->stop();
  auto answers = recorder_.answers();
  uint64_t ended = 0;
  uint64_t total = 0;
  for (const auto& of_thread : accepted) {
    for (const RequestId id : of_thread) {
      ++total;
      const int ends = answers[id].ends;
      ended += static_cast<uint64_t>(ends);
      EXPECT_TRUE(ends == 1 || (ends == 0 && aborted.contains(id)))
          << "request " << id << " ended " << ends << " times";
    }
  }
  const Stats stats = engine_->stats();
  EXPECT_EQ(stats.requests_finished, ended);
  EXPECT_EQ(stats.requests_finished + stats.requests_aborted, total);
  EXPECT_EQ(stats.kv_blocks_used, 0U);
  EXPECT_EQ(stats.running, 0U);
  EXPECT_EQ(stats.waiting, 0U);
}

}  // namespace
}  // namespace dyn::engine
