#include "native/exec/cpu/cpu_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "native/exec/step_driver.h"

namespace dyn::native {
namespace {

using testing::HasSubstr;

ModelConfig small() {
  ModelConfig c;
  c.architecture = "LlamaForCausalLM";
  c.vocab_size = 96;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.num_layers = 2;
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.head_dim = 16;
  c.max_positions = 4096;
  return c;
}

std::unique_ptr<Executor> make(const ExecutorLimits& limits, unsigned threads, ModelConfig config = small()) {
  auto weights = load_weights(config, "", {.format = LoadFormat::kDummy});
  EXPECT_TRUE(weights.ok());
  auto executor = make_cpu_executor(std::move(config), std::move(*weights), limits, {.threads = threads});
  EXPECT_TRUE(executor.ok()) << executor.error().message;
  return std::move(*executor);
}

ExecutorLimits limits_of(uint32_t tokens_per_block, uint32_t tokens = 8192) {
  return {.max_batch_size = 8,
          .max_num_tokens = 2048,
          .tokens_per_block = tokens_per_block,
          .num_pages = tokens / tokens_per_block};
}

std::vector<TokenId> prompt_of(size_t size, TokenId seed) {
  std::vector<TokenId> prompt(size);
  for (size_t i = 0; i < size; ++i) prompt[i] = static_cast<TokenId>((i * i + 31 * i + seed) % 96);
  return prompt;
}

using Top = std::vector<std::vector<engine::TopLogprob>>;

void expect_same(const Top& a, const Top& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t s = 0; s < a.size(); ++s) {
    ASSERT_EQ(a[s].size(), b[s].size());
    for (size_t i = 0; i < a[s].size(); ++i) {
      ASSERT_EQ(a[s][i].id, b[s][i].id) << "step " << s;
      ASSERT_EQ(a[s][i].logprob, b[s][i].logprob) << "step " << s;
    }
  }
}

// Over several parts of attention (512 tokens each): built by chunks of any size, decoded or recomputed as prompt, with
// any number of threads, a token's logits are the same bits.
TEST(CpuExecutor, LongSequencesDoNotDependOnHowTheyWereBuilt) {
  const std::vector<TokenId> prompt = prompt_of(1300, 5);
  for (uint32_t per_block : {5U, 32U}) {
    auto first = make(limits_of(per_block), 1);
    StepDriver reference(*first);
    auto& whole = reference.add({.prompt = prompt, .logprobs = 96});
    reference.generate(whole, 6);
    for (size_t chunk : {size_t{1}, size_t{33}, size_t{500}}) {
      auto executor = make(limits_of(per_block), 3);
      StepDriver driver(*executor);
      auto& s = driver.add({.prompt = prompt, .logprobs = 96});
      driver.generate(s, 6, chunk);
      EXPECT_EQ(s.generated, whole.generated);
      expect_same(s.top, whole.top);
    }
    // The answer so far as part of a prompt: what a preemption does.
    auto& resumed = reference.add({.prompt = {whole.tokens.begin(), whole.tokens.begin() + 1304}, .logprobs = 96});
    reference.generate(resumed, 2);
    EXPECT_EQ(resumed.generated[0], whole.generated[4]);
    expect_same(resumed.top, {whole.top.begin() + 4, whole.top.end()});
  }
}

// The same over windows that begin in the middle of pages and of parts.
TEST(CpuExecutor, WindowsDoNotDependOnHowSequencesWereBuilt) {
  ModelConfig config = small();
  config.layers = {{.window = 600}, {.window = 37}};
  const std::vector<TokenId> prompt = prompt_of(1300, 5);
  auto first = make(limits_of(32), 1, config);
  StepDriver reference(*first);
  auto& whole = reference.add({.prompt = prompt, .logprobs = 96});
  reference.generate(whole, 4);
  for (size_t chunk : {size_t{1}, size_t{33}, size_t{500}}) {
    auto executor = make(limits_of(32), 3, config);
    StepDriver driver(*executor);
    auto& s = driver.add({.prompt = prompt, .logprobs = 96});
    driver.generate(s, 4, chunk);
    expect_same(s.top, whole.top);
  }
}

// What lies further back than the layers' windows reach together changes nothing; what lies nearer does.
TEST(CpuExecutor, WindowsHideWhatLiesFurtherBack) {
  ModelConfig config = small();
  config.layers = {{.window = 20}, {.window = 30}};  // reach 19 + 29 tokens back
  auto executor = make(limits_of(16), 2, config);
  auto run = [&](size_t changed) {
    std::vector<TokenId> prompt = prompt_of(700, 5);
    prompt[changed] = (prompt[changed] + 1) % 96;
    StepDriver driver(*executor);
    auto& s = driver.add({.prompt = std::move(prompt), .logprobs = 96});
    driver.generate(s, 1);
    return s.top;
  };
  const Top reference = run(0);
  expect_same(run(300), reference);
  expect_same(run(699 - 49), reference);
  EXPECT_NE(run(699 - 48)[0][0].logprob, reference[0][0].logprob);
}

// Pages of 1024 tokens cut a sequence into other parts than pages of 32: the sums are the same up to rounding.
TEST(CpuExecutor, PartsOfASequenceAddUp) {
  Top results[2];
  for (size_t i = 0; i < 2; ++i) {
    auto executor = make(limits_of(i == 0 ? 32 : 1024), 2);
    StepDriver driver(*executor);
    auto& s = driver.add({.prompt = prompt_of(1300, 3), .logprobs = 96});
    driver.generate(s, 2);
    results[i] = s.top;
  }
  for (size_t i = 0; i < 96; ++i) {
    EXPECT_EQ(results[0][0][i].id, results[1][0][i].id);
    EXPECT_NEAR(results[0][0][i].logprob, results[1][0][i].logprob, 2e-5);
  }
}

TEST(CpuExecutor, PagesMayHoldRubbishBeyondTheContext) {
  auto executor = make(limits_of(32, 128), 1);
  auto run = [&](std::vector<TokenId> prompt) {
    StepDriver driver(*executor);  // the same pages in the same order each time
    auto& s = driver.add({.prompt = std::move(prompt), .logprobs = 96});
    driver.generate(s, 3);
    return s.top;
  };
  const Top clean = run(prompt_of(5, 1));
  run(prompt_of(100, 7));  // fills the pages with other tokens
  expect_same(run(prompt_of(5, 1)), clean);
}

TEST(CpuExecutor, TakesTokensOfTheStepBefore) {
  auto executor = make(limits_of(32), 2);
  StepDriver driver(*executor);
  auto& expected = driver.add({.prompt = prompt_of(4, 1), .logprobs = 96});
  driver.generate(expected, 2);

  StepPlan plan;
  StepResult result;
  plan.tokens = prompt_of(4, 1);
  plan.positions = {0, 1, 2, 3};
  plan.row_offsets = {0, 4};
  plan.context_lens = {4};
  plan.pages = {100};
  plan.page_offsets = {0, 1};
  plan.slot_starts = {{.slot = 7, .sampling = {.temperature = 0}}};
  plan.samples = {{.row = 0, .slot = 7, .logprobs = 0}};
  ASSERT_TRUE(executor->enqueue(plan).ok());
  EXPECT_FALSE(executor->enqueue(plan).ok()) << "one step at a time";
  ASSERT_TRUE(executor->collect(result).ok());
  EXPECT_FALSE(executor->collect(result).ok());
  EXPECT_EQ(result.tokens[0], expected.generated[0]);

  plan.tokens = {kTokenOfPreviousStep};
  plan.from_sample = {0};
  plan.positions = {4};
  plan.row_offsets = {0, 1};
  plan.context_lens = {5};
  plan.slot_starts.clear();
  ASSERT_TRUE(executor->enqueue(plan).ok());
  ASSERT_TRUE(executor->collect(result).ok());
  EXPECT_EQ(result.tokens[0], expected.generated[1]);
  EXPECT_EQ(result.logprobs[0], expected.logprobs[1]);
}

TEST(CpuExecutor, SamplesTheSameInAnyBatch) {
  auto executor = make(limits_of(32), 3);
  const engine::SamplingParams params{
      .temperature = 0.9F, .top_k = 50, .top_p = 0.95F, .presence_penalty = 0.5F, .seed = 11};
  StepDriver alone(*executor);
  auto& expected = alone.add({.prompt = prompt_of(9, 2), .sampling = params});
  alone.generate(expected, 12);

  StepDriver driver(*executor);
  std::vector<StepDriver::Sequence*> all;
  for (TokenId i = 0; i < 5; ++i) {
    all.push_back(&driver.add({.prompt = prompt_of(9, i), .sampling = params}));
  }
  while (all[2]->generated.size() < 12) {
    std::vector<std::pair<StepDriver::Sequence*, size_t>> rows;
    for (auto* s : all) rows.emplace_back(s, s->left());
    driver.step(rows);
  }
  EXPECT_EQ(all[2]->generated, expected.generated);
  EXPECT_NE(all[1]->generated, expected.generated);
}

// The second layer has experts.
ModelConfig small_mixture() {
  ModelConfig config = small();
  config.layers = {{}, {.experts = true}};
  config.experts = {.count = 5, .chosen = 3, .intermediate_size = 32, .normalize = true};
  return config;
}

class CpuExecutorNotFinite : public testing::TestWithParam<bool> {};

TEST_P(CpuExecutorNotFinite, IsReportedForItsRowAlone) {
  const ModelConfig config = GetParam() ? small_mixture() : small();
  auto weights = load_weights(config, "", {.format = LoadFormat::kDummy});
  ASSERT_TRUE(weights.ok());
  // One row of the embedding is NaN.
  auto* row = const_cast<std::byte*>(weights->embedding.data) + 50 * weights->embedding.row_bytes();
  std::memset(row, 0xFF, weights->embedding.row_bytes());
  auto executor = make_cpu_executor(config, std::move(*weights), limits_of(32), {.threads = 2});
  ASSERT_TRUE(executor.ok());
  StepDriver driver(**executor);
  auto& bad = driver.add({.prompt = {1, 50, 2}, .logprobs = 3});
  auto& good = driver.add({.prompt = {1, 51, 2}, .logprobs = 3});
  driver.step({{&bad, 3}, {&good, 3}});
  EXPECT_TRUE(bad.not_finite);
  EXPECT_FALSE(good.not_finite) << "an error of one row stays with it";
}

INSTANTIATE_TEST_SUITE_P(Mixture, CpuExecutorNotFinite, testing::Bool());

constexpr TokenId kNext[] = {1};
constexpr TokenId kTooMany[] = {1, 2, 3};
constexpr TokenId kOutside[] = {96};

TEST(CpuExecutor, RefusesPlansThatAreWrong) {
  auto executor = make(limits_of(32, 320), 1);  // 10 pages
  StepPlan good;
  good.tokens = {1, 2, 3};
  good.positions = {0, 1, 0};
  good.row_offsets = {0, 2, 3};
  good.context_lens = {2, 1};
  good.pages = {3, 4};
  good.page_offsets = {0, 1, 2};
  good.samples = {{.row = 0, .slot = 0}, {.row = 1, .slot = 1}};
  const std::pair<const char*, void (*)(StepPlan&)> cases[] = {
      {"0 tokens", [](StepPlan& p) { p.clear(); }},
      {"vocabulary of 96", [](StepPlan& p) { p.tokens[1] = 96; }},
      {"names no sample", [](StepPlan& p) { p.tokens[1] = kTokenOfPreviousStep; }},
      {"one position a token", [](StepPlan& p) { p.positions.pop_back(); }},
      {"position -1", [](StepPlan& p) { p.positions[0] = -1; }},
      {"row_offsets", [](StepPlan& p) { p.row_offsets = {0, 3, 3}; }},
      {"row_offsets", [](StepPlan& p) { p.row_offsets = {0, 2, 4}; }},
      {"page_offsets", [](StepPlan& p) { p.page_offsets.pop_back(); }},
      {"context of 1 for 2 tokens", [](StepPlan& p) { p.context_lens[0] = 1; }},
      {"1 pages for a context of 33", [](StepPlan& p) { p.context_lens[0] = 33; }},
      {"page 0 is 10", [](StepPlan& p) { p.pages[1] = 10; }},
      {"page 0 is -1", [](StepPlan& p) { p.pages[1] = -1; }},
      {"slot 8", [](StepPlan& p) { p.samples[1].slot = 8; }},
      {"slot 9", [](StepPlan& p) { p.slot_starts.push_back({.slot = 9}); }},
      {"rows descend", [](StepPlan& p) { p.samples[0].row = 1, p.samples[1].row = 0; }},
      {"9 samples of 8 slots", [](StepPlan& p) { p.samples.resize(9, p.samples.back()); }},
      {"a copy of page 1 to 1", [](StepPlan& p) { p.page_copies = {{.from = 1, .to = 1}}; }},
      {"a copy of page -1 to 2", [](StepPlan& p) { p.page_copies = {{.from = kNoPage, .to = 2}}; }},
      {"a copy of page 2 to 10", [](StepPlan& p) { p.page_copies = {{.from = 2, .to = 10}}; }},
      {"long_rope", [](StepPlan& p) { p.long_rope = {1}; }},
      {"log-probabilities 0 of row 2", [](StepPlan& p) { p.prompt_logprobs = {{.row = 2, .next = kNext}}; }},
      {"log-probabilities 1 of row 0",
       [](StepPlan& p) { p.prompt_logprobs = {{.row = 0, .next = kNext}, {.row = 0, .next = kNext}}; }},
      {"log-probabilities of 0 tokens", [](StepPlan& p) { p.prompt_logprobs = {{.row = 0}}; }},
      {"log-probabilities of 3 tokens", [](StepPlan& p) { p.prompt_logprobs = {{.row = 0, .next = kTooMany}}; }},
      {"97 alternatives", [](StepPlan& p) { p.prompt_logprobs = {{.row = 0, .top = 97, .next = kNext}}; }},
      {"log-probability of token 96", [](StepPlan& p) { p.prompt_logprobs = {{.row = 0, .next = kOutside}}; }},
      {"of row 2", [](StepPlan& p) { p.samples[1].row = 2; }},
  };
  for (const auto& [message, spoil] : cases) {
    StepPlan plan = good;
    spoil(plan);
    auto result = executor->enqueue(plan);
    ASSERT_FALSE(result.ok()) << message;
    EXPECT_THAT(result.error().message, HasSubstr(message));
  }
  StepResult result;
  ASSERT_TRUE(executor->enqueue(good).ok());
  ASSERT_TRUE(executor->collect(result).ok());
  EXPECT_EQ(result.tokens.size(), 2U);
}

// The log-probability of a token is the same, bit for bit, as part of an answer and as part of a prompt, in chunks of
// any size and more of them than there is room for at once.
TEST(CpuExecutor, PromptLogprobsAreThoseOfAnAnswer) {
  const std::vector<TokenId> prompt = prompt_of(30, 3);
  auto executor = make(limits_of(32), 2);
  StepDriver driver(*executor);
  auto& answer = driver.add({.prompt = prompt, .logprobs = 3});
  driver.generate(answer, 20);
  std::vector<TokenId> text = prompt;
  text.insert(text.end(), answer.generated.begin(), answer.generated.end());
  for (const size_t chunk : {size_t{100}, size_t{9}, size_t{1}}) {
    auto& scored = driver.add({.prompt = text, .prompt_logprobs = 3});
    auto& other = driver.add({.prompt = prompt_of(7, 40), .prompt_logprobs = 0});
    driver.step({{&other, 4}, {&scored, std::min(chunk, text.size())}});
    driver.generate(scored, 1, chunk);
    driver.generate(other, 1);
    ASSERT_EQ(scored.prompt_logprobs.size(), text.size() - 1);
    EXPECT_EQ(other.prompt_logprobs.size(), 6U);
    EXPECT_TRUE(other.prompt_top.empty());
    for (size_t i = 0; i < 20; ++i) {
      EXPECT_EQ(scored.prompt_logprobs[prompt.size() - 1 + i], answer.logprobs[i]);
      for (size_t k = 0; k < 3; ++k) {
        EXPECT_EQ(scored.prompt_top[(prompt.size() - 1 + i) * 3 + k].id, answer.top[i][k].id);
        EXPECT_EQ(scored.prompt_top[(prompt.size() - 1 + i) * 3 + k].logprob, answer.top[i][k].logprob);
      }
    }
    driver.release(scored);
    driver.release(other);
  }
}

// A sequence goes on in two: both samples of one row, the second one's last page copied before the first writes to it.
TEST(CpuExecutor, TwoSamplesOfARowAndACopiedPage) {
  const std::vector<TokenId> prompt = prompt_of(11, 3);  // a page and three tokens of the next
  const auto answer = [&](uint64_t seed) {
    auto executor = make(limits_of(8), 1);
    StepDriver driver(*executor);
    auto& s = driver.add({.prompt = prompt, .sampling = {.temperature = 2.0F, .seed = seed}, .logprobs = 0});
    driver.generate(s, 2);
    return std::pair(s.generated, s.logprobs);
  };
  auto executor = make(limits_of(8), 2);
  StepPlan plan;
  plan.tokens = prompt;
  for (int32_t i = 0; i < 11; ++i) plan.positions.push_back(i);
  plan.row_offsets = {0, 11};
  plan.context_lens = {11};
  plan.pages = {4, 2};
  plan.page_offsets = {0, 2};
  for (const SlotId slot : {0U, 1U}) {
    plan.slot_starts.push_back(
        {.slot = slot, .sampling = {.temperature = 2.0F, .seed = 7 + slot}, .prompt = prompt, .generated = {}});
    plan.samples.push_back({.row = 0, .slot = slot, .logprobs = 0});
  }
  StepResult first;
  ASSERT_TRUE(executor->enqueue(plan).ok());
  ASSERT_TRUE(executor->collect(first).ok());
  plan.clear();
  plan.tokens = {kTokenOfPreviousStep, kTokenOfPreviousStep};
  plan.from_sample = {0, 1};
  plan.positions = {11, 11};
  plan.row_offsets = {0, 1, 2};
  plan.context_lens = {12, 12};
  plan.pages = {4, 2, 4, 5};
  plan.page_offsets = {0, 2, 4};
  plan.page_copies = {{.from = 2, .to = 5}};
  for (const SlotId slot : {0U, 1U}) plan.samples.push_back({.row = slot, .slot = slot, .position = 1, .logprobs = 0});
  StepResult second;
  ASSERT_TRUE(executor->enqueue(plan).ok());
  ASSERT_TRUE(executor->collect(second).ok());
  for (const SlotId slot : {0U, 1U}) {
    const auto [tokens, logprobs] = answer(7 + slot);
    EXPECT_EQ(tokens, (std::vector<TokenId>{first.tokens[slot], second.tokens[slot]}));
    EXPECT_EQ(logprobs, (std::vector<float>{first.logprobs[slot], second.logprobs[slot]}));
  }
}

// Pages before the window are given away and written by others: nobody looks at them.
TEST(CpuExecutor, PagesBeforeTheWindowAreNotNeeded) {
  ModelConfig config = small();
  config.layers.assign(config.num_layers, {.window = 20});
  for (const uint32_t per_block : {4U, 32U}) {
    auto executor = make(limits_of(per_block, 256), 2, config);
    StepDriver driver(*executor);
    auto& whole = driver.add({.prompt = prompt_of(50, 1), .logprobs = 96});
    driver.generate(whole, 30, 7);
    auto& holes = driver.add({.prompt = prompt_of(50, 1), .logprobs = 96});
    while (holes.generated.size() < 30) {
      driver.drop_before_window(holes, 20);
      driver.step({{&holes, std::min<size_t>(holes.left(), 7)}});
    }
    EXPECT_EQ(holes.pages[0] == kNoPage, true);
    expect_same(holes.top, whole.top);
  }
  // A page that is still looked at may not be missing, nor one in a model without a window.
  auto executor = make(limits_of(4), 1, config);
  StepDriver driver(*executor);
  auto& early = driver.add({.prompt = prompt_of(50, 1)});
  driver.generate(early, 1);
  driver.drop_before_window(early, 16);
  EXPECT_THROW(driver.step({{&early, 1}}), std::runtime_error);
  auto full = make(limits_of(4), 1);
  StepDriver other(*full);
  auto& s = other.add({.prompt = prompt_of(50, 1)});
  other.generate(s, 1);
  other.drop_before_window(s, 20);
  EXPECT_THROW(other.step({{&s, 1}}), std::runtime_error);
}

TEST(CpuExecutor, RefusesWhatItCannotRun) {
  auto refused = [](const ModelConfig& config, const ExecutorLimits& limits, const CpuOptions& options = {}) {
    auto executor = make_cpu_executor(config, {}, limits, options);
    EXPECT_FALSE(executor.ok());
    return executor ? "" : executor.error().message;
  };
  ModelConfig config = small();
  config.head_dim = 24;
  EXPECT_THAT(refused(config, limits_of(32)), HasSubstr("head_dim = 24: the CPU executor needs a multiple of 16"));
  ExecutorLimits limits = limits_of(32);
  limits.num_pages = 0;
  EXPECT_THAT(refused(small(), limits), HasSubstr("num_pages = 0"));
  EXPECT_THAT(refused(small(), limits_of(32), {.threads = 100'000}), HasSubstr("compute threads"));
  limits.num_pages = INT32_MAX;
  config = small();
  config.num_layers = 4096;
  EXPECT_THAT(refused(config, limits), HasSubstr("KV pool"));
}

TEST(CpuExecutor, KnowsItsBytes) {
  const ModelConfig config = small();
  EXPECT_EQ(kv_bytes_per_page(config, 32), 2U * 2 * 2 * 16 * 32 * 4);
  EXPECT_EQ(kv_bytes_per_page(config, 5), 2U * 2 * (16 * 16 + 5 * 16) * 4) << "keys are padded to 16 tokens";
  // T = 2048 tokens: residual stream, norm, qkv, attention, gate and up, angles; B = 8: last rows and logits.
  const uint64_t activations = (uint64_t{2048} * (64 + 64 + 160 + 96 + 192 + 8 + 8) + 8 * (64 + 96)) * 4;
  EXPECT_EQ(scratch_bytes(config, limits_of(32)), activations);
  EXPECT_EQ(scratch_bytes(small_mixture(), limits_of(32)), activations + uint64_t{2048} * (5 + 3 * (1 + 64 + 64)) * 4);
  auto executor = make(limits_of(32), 1);
  StepDriver driver(*executor);
  auto& s = driver.add({.prompt = prompt_of(40, 1)});
  driver.generate(s, 2);
  const uint64_t qkv = uint64_t{6 + 2 + 2} * 16 * 64;
  const uint64_t o = uint64_t{64} * 6 * 16;
  const uint64_t mlp = uint64_t{3} * 96 * 64;
  const uint64_t layer_bytes = (qkv + o + mlp) * 2;
  const uint64_t kv = 41 + 1;  // read, written
  EXPECT_EQ(executor->active_bytes(driver.plan()), 64 * 2 + 2 * layer_bytes + 96 * 64 * 2 + kv * 2 * 2 * 32 * 4);

  auto mixture = make(limits_of(32), 1, small_mixture());
  const uint64_t experts = uint64_t{5} * 64 + 3 * uint64_t{3} * 32 * 64;  // router, three experts
  EXPECT_EQ(executor->active_bytes(driver.plan()) - mlp * 2 + experts * 2, mixture->active_bytes(driver.plan()));

  ModelConfig windowed = config;
  windowed.layers = {{}, {.window = 10}};
  auto other = make(limits_of(32), 1, windowed);
  EXPECT_EQ(executor->active_bytes(driver.plan()) - other->active_bytes(driver.plan()), (41 - 10) * 2 * 32 * 4);
}

}  // namespace
}  // namespace dyn::native
