// Many random requests over a small pool: the answers must be the model's, whatever happened to them on the way.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "base/test_sanitized.h"
#include "engine/engine_contract.h"
#include "native/loop/native_stepper.h"
#include "native/testing/fake_executor.h"

namespace dyn::native {
namespace {

using engine::contract_prompt;
using engine::Request;
using engine::StepOutput;
using llm::FinishReason;

constexpr uint32_t kVocab = 1000;

struct StormCase {
  uint32_t depth;
  CapacityPolicy policy;
  uint32_t pages;
  uint32_t window = 0;
  uint32_t long_rope_from = 0;
  uint32_t max_choices = 1;
  bool copy_tails = true;
};

constexpr engine::RequestId kRequests = kSanitized ? 600 : 3000;

// Aborts and stops, prompts with common prefixes, some in chunks, some with log-probabilities of the prompt, several
// choices; preemptions, evictions, steps planned ahead. The executor checks every page and position.
class NativeStorm : public ::testing::TestWithParam<StormCase> {
 protected:
  struct Choice {
    std::vector<TokenId> full;  // what the model would say
    std::vector<TokenId> tokens;
    FinishReason finish = FinishReason::kNone;
  };
  struct Expected {
    Request request;
    std::vector<Choice> choices;
    size_t ended = 0;
    bool aborted = false;
  };

  uint32_t below(uint32_t limit) { return static_cast<uint32_t>(random() % limit); }

  void submit(engine::RequestId id) {
    Request request{.id = id};
    const uint32_t length = 1 + below(std::min(40U, max_seq_len - 1));
    request.token_ids = contract_prompt(length, 100 * below(3));
    if (below(2) == 0) request.token_ids.back() = below(kVocab);
    request.max_tokens = 1 + below(max_seq_len - length);
    request.priority = static_cast<int32_t>(below(2));
    request.sampling.temperature = below(2) == 0 ? 0.0F : 1.0F;
    request.sampling.seed = below(3);
    request.num_choices = 1 + below(GetParam().max_choices);
    if (below(5) == 0) request.prompt_logprobs = below(3);
    if (below(8) == 0) request.cache_salt = "s";
    Expected& expected = all[id];
    for (uint32_t i = 0; i < request.num_choices; ++i) {
      engine::SamplingParams sampling = request.sampling;
      sampling.seed += i;
      expected.choices.push_back(
          {.full = fake_answer(request.token_ids, request.max_tokens, sampling, kVocab, GetParam().long_rope_from)});
    }
    // Half of them end at a token that the model will choose.
    if (below(2) == 0) {
      const Choice& choice = expected.choices[below(request.num_choices)];
      const TokenId stop = choice.full[below(request.max_tokens)];
      (below(2) == 0 ? request.stop_token_ids : request.visible_stop_token_ids).push_back(stop);
    }
    expected.request = request;
    open.push_back(id);
    native->submit(std::move(request));
  }

  void take(const engine::RequestOutput& output) {
    Expected& expected = all.at(output.id);
    ASSERT_FALSE(expected.aborted) << "an output after the abort";
    ASSERT_LT(output.choice, expected.choices.size());
    Choice& choice = expected.choices[output.choice];
    ASSERT_EQ(choice.finish, FinishReason::kNone) << "an output after the end";
    choice.tokens.insert(choice.tokens.end(), output.tokens.begin(), output.tokens.end());
    choice.finish = output.finish;
    if (output.finish == FinishReason::kNone) return;
    check_answer(expected.request, choice);
    const bool last = ++expected.ended == expected.choices.size();
    ASSERT_EQ(output.more_choices, !last);
    ASSERT_EQ(output.prompt_tokens, expected.request.token_ids.size());
    cached += output.cached_tokens;
    ASSERT_EQ(output.prompt_logprobs.empty(), !last || !expected.request.prompt_logprobs || output.prompt_tokens == 1);
    if (!output.prompt_logprobs.empty()) check_scores(expected.request, output);
    if (!last) return;
    size_t tokens = 0;
    for (const Choice& each : expected.choices) tokens += each.tokens.size();
    ASSERT_EQ(output.completion_tokens, tokens);
    std::erase(open, output.id);
  }

  static void check_answer(const Request& request, const Choice& choice) {
    std::vector<TokenId> wanted = choice.full;
    FinishReason finish = FinishReason::kLength;
    const auto& hidden = request.stop_token_ids;
    const auto& visible = request.visible_stop_token_ids;
    for (size_t i = 0; i < wanted.size(); ++i) {
      const bool is_hidden = std::ranges::count(hidden, wanted[i]) > 0;
      if (!is_hidden && std::ranges::count(visible, wanted[i]) == 0) continue;
      wanted.resize(is_hidden ? i : i + 1);
      finish = FinishReason::kStop;
      break;
    }
    ASSERT_EQ(choice.tokens, wanted) << "request " << request.id;
    ASSERT_EQ(choice.finish, finish);
  }

  static void check_scores(const Request& request, const engine::RequestOutput& output) {
    const auto wanted = fake_prompt_logprobs(request.token_ids, GetParam().long_rope_from);
    ASSERT_EQ(output.prompt_top_width, *request.prompt_logprobs + 1);
    ASSERT_EQ(output.prompt_logprobs.size(), wanted.size() * output.prompt_top_width) << "of each token once";
    for (size_t i = 0; i < wanted.size(); ++i) {
      const auto& own = output.prompt_logprobs[i * output.prompt_top_width];
      ASSERT_EQ(own.id, request.token_ids[i + 1]);
      ASSERT_EQ(own.logprob, wanted[i]) << "token " << i + 1 << " of request " << request.id;
      for (uint32_t k = 1; k < output.prompt_top_width; ++k)
        ASSERT_EQ(output.prompt_logprobs[i * output.prompt_top_width + k].rank, k);
    }
  }

  std::mt19937 random;
  std::unique_ptr<NativeStepper> native;
  uint32_t max_seq_len = 0;
  std::map<engine::RequestId, Expected> all;
  std::vector<engine::RequestId> open;
  uint64_t cached = 0;
};

TEST_P(NativeStorm, EveryAnswerIsTheModels) {
  const StormCase& param = GetParam();
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  random.seed(seed);
  native = std::make_unique<NativeStepper>(
      NativeEngineOptions{.capacity_policy = param.policy, .enable_partial_reuse = param.copy_tails, .warm_up = false},
      std::make_unique<FakeExecutor>(FakeExecutorOptions{
          .limits = {.max_batch_size = 8, .max_num_tokens = 16, .tokens_per_block = 4, .num_pages = param.pages},
          .pipeline_depth = param.depth,
          .vocab_size = kVocab,
          .window = param.window,
          .long_rope_from = param.long_rope_from}),
      ModelFacts{
          .vocab_size = kVocab, .max_seq_len = 60, .window = param.window, .long_rope_from = param.long_rope_from});
  max_seq_len = native->caps().max_seq_len;

  engine::RequestId next = 1;
  uint64_t aborted = 0;
  StepOutput out;
  while (next < kRequests || native->alive() > 0) {
    while (next < kRequests && native->alive() < 20 && below(2) == 0) submit(next++);
    if (!open.empty() && below(20) == 0) {
      const auto victim = open[below(static_cast<uint32_t>(open.size()))];
      std::erase(open, victim);
      all[victim].aborted = true;
      native->abort(victim);
      ++aborted;
    }
    auto turn = native->turn(out);
    ASSERT_TRUE(turn.ok()) << turn.error().message;
    ASSERT_EQ(native->blocks().audit(), "");
    if (!turn->has_output) continue;
    for (const auto& output : out.requests) ASSERT_NO_FATAL_FAILURE(take(output));
  }
  for (const auto& [id, expected] : all) {
    ASSERT_TRUE(expected.ended == expected.choices.size() || expected.aborted) << id;
  }
  // The last step in flight may hold rows of ended requests only.
  while (native->turn(out)->has_output) {
  }
  const engine::Stats stats = native->stats();
  EXPECT_EQ(stats.kv_blocks_used, 0U);
  EXPECT_EQ(stats.running + stats.waiting, 0U);
  EXPECT_EQ(stats.requests_aborted, aborted);
  EXPECT_EQ(stats.requests_finished + stats.requests_aborted, kRequests - 1);
  EXPECT_GT(cached, 0U);
  EXPECT_GT(stats.kv_block_hits, 0U);
  if (param.policy == CapacityPolicy::kMaxUtilization) {
    EXPECT_GT(stats.preemptions, 0U);
  } else if (param.long_rope_from == 0) {
    EXPECT_EQ(stats.preemptions, 0U);
  }
}

constexpr auto kNoEvict = CapacityPolicy::kGuaranteedNoEvict;
constexpr auto kMaxUse = CapacityPolicy::kMaxUtilization;

INSTANTIATE_TEST_SUITE_P(
    Cases, NativeStorm,
    ::testing::Values(StormCase{1, kNoEvict, 40}, StormCase{2, kNoEvict, 40}, StormCase{1, kMaxUse, 25},
                      StormCase{2, kMaxUse, 25}, StormCase{2, kMaxUse, 60},
                      StormCase{.depth = 2, .policy = kMaxUse, .pages = 25, .copy_tails = false},
                      StormCase{.depth = 1, .policy = kNoEvict, .pages = 40, .max_choices = 4},
                      StormCase{.depth = 2, .policy = kNoEvict, .pages = 90, .max_choices = 12},
                      StormCase{.depth = 1, .policy = kMaxUse, .pages = 25, .max_choices = 4},
                      StormCase{.depth = 2, .policy = kMaxUse, .pages = 25, .max_choices = 4},
                      StormCase{.depth = 2, .policy = kMaxUse, .pages = 18, .max_choices = 9},
                      StormCase{.depth = 1, .policy = kNoEvict, .pages = 25, .window = 10},
                      StormCase{.depth = 2, .policy = kNoEvict, .pages = 40, .window = 7, .max_choices = 3},
                      StormCase{.depth = 2, .policy = kMaxUse, .pages = 16, .window = 6, .max_choices = 3},
                      StormCase{.depth = 1, .policy = kMaxUse, .pages = 20, .window = 13, .max_choices = 3},
                      StormCase{.depth = 1, .policy = kNoEvict, .pages = 40, .long_rope_from = 30},
                      StormCase{.depth = 2, .policy = kNoEvict, .pages = 40, .long_rope_from = 30, .max_choices = 3},
                      StormCase{.depth = 1, .policy = kMaxUse, .pages = 25, .long_rope_from = 24, .max_choices = 3},
                      StormCase{.depth = 2, .policy = kMaxUse, .pages = 25, .long_rope_from = 24, .max_choices = 3}));

}  // namespace
}  // namespace dyn::native
