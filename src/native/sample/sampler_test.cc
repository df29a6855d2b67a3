#include "native/sample/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

namespace dyn::native {
namespace {

using engine::SamplingParams;
using testing::Each;
using testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Fixture {
  explicit Fixture(std::vector<float> values, const SamplingParams& params = {}, std::vector<TokenId> prompt = {},
                   std::vector<TokenId> generated = {})
      : logits(std::move(values)), sampler(static_cast<uint32_t>(logits.size())) {
    slot.start(params, prompt, generated, static_cast<uint32_t>(logits.size()));
  }
  Sample at(uint64_t position, std::span<engine::TopLogprob> top = {}) {
    return sampler.sample(logits, slot, {.position = position, .logprobs = static_cast<int32_t>(top.size())}, top);
  }
  // How often each token is drawn at the positions below `draws`.
  std::vector<uint64_t> histogram(uint64_t draws) {
    std::vector<uint64_t> counts(logits.size());
    for (uint64_t i = 0; i < draws; ++i) ++counts[at(i).token];
    return counts;
  }

  std::vector<float> logits;
  SamplerSlot slot;
  Sampler sampler;
};

std::vector<float> logs(std::initializer_list<double> probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

// Pearson's statistic stays below its expectation by far more than five standard deviations unless the distribution is
// wrong. Seeds are fixed, so the result is the same every time.
void expect_distribution(const std::vector<uint64_t>& counts, const std::vector<double>& probabilities) {
  uint64_t draws = 0;
  for (uint64_t count : counts) draws += count;
  double statistic = 0;
  double freedom = -1;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = probabilities[i] * static_cast<double>(draws);
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0U) << "token " << i;
      continue;
    }
    statistic += std::pow(static_cast<double>(counts[i]) - expected, 2) / expected;
    ++freedom;
  }
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom) + 5);
}

// Known answers of the reference implementation, Random123 1.14 (tests/kat_vectors, philox4x32 10).
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_THAT(philox4x32({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8));
  constexpr uint32_t kAll = 0xFFFFFFFF;
  EXPECT_THAT(philox4x32({kAll, kAll, kAll, kAll}, {kAll, kAll}),
              ElementsAre(0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD));
  EXPECT_THAT(philox4x32({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, {0xA4093822, 0x299F31D0}),
              ElementsAre(0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1));
}

TEST(Philox, IsUniformInPositionAndSeed) {
  std::vector<uint64_t> by_position(16);
  std::vector<uint64_t> by_seed(16);
  for (uint64_t i = 0; i < 16'000; ++i) {
    ++by_position[static_cast<size_t>(uniform_at(1, i) * 16)];
    ++by_seed[static_cast<size_t>(uniform_at(i, 1) * 16)];
  }
  expect_distribution(by_position, std::vector<double>(16, 1.0 / 16));
  expect_distribution(by_seed, std::vector<double>(16, 1.0 / 16));
  EXPECT_NE(uniform_at(0, uint64_t{1} << 32), uniform_at(0, 0));
  EXPECT_NE(uniform_at(uint64_t{1} << 32, 0), uniform_at(0, 0));
}

TEST(Sampler, GreedyTakesTheHighestAndTheLowestIdOfEquals) {
  EXPECT_EQ(Fixture({1, 3, 2}, {.temperature = 0}).at(0).token, 1U);
  EXPECT_EQ(Fixture({1, 3, 3, 3}, {.temperature = 0}).at(0).token, 1U);
  EXPECT_EQ(Fixture({-kInfinity, -5, -kInfinity}, {.temperature = 0}).at(0).token, 1U);
  EXPECT_EQ(Fixture({1, 3, 3}, {.temperature = 5, .top_k = 1}).at(7).token, 1U);
  EXPECT_EQ(Fixture({0, 0, 0}, {.temperature = std::nanf("")}).at(3).token, 0U) << "not a number is no temperature";
}

TEST(Sampler, DrawsFromTheSoftmaxAtATemperature) {
  const auto logits = logs({0.5, 0.25, 0.125, 0.125});
  expect_distribution(Fixture(logits).histogram(20'000), {0.5, 0.25, 0.125, 0.125});
  const double norm = std::sqrt(0.5) + std::sqrt(0.25) + 2 * std::sqrt(0.125);
  expect_distribution(
      Fixture(logits, {.temperature = 2}).histogram(20'000),
      {std::sqrt(0.5) / norm, std::sqrt(0.25) / norm, std::sqrt(0.125) / norm, std::sqrt(0.125) / norm});
}

TEST(Sampler, TopKKeepsExactlyK) {
  const auto logits = logs({0.1, 0.4, 0.2, 0.3});
  expect_distribution(Fixture(logits, {.top_k = 2}).histogram(10'000), {0, 4.0 / 7, 0, 3.0 / 7});
  expect_distribution(Fixture({0, 0, 0, 0}, {.top_k = 3}).histogram(10'000), {1.0 / 3, 1.0 / 3, 1.0 / 3, 0});
  expect_distribution(Fixture(logits, {.top_k = 100}).histogram(10'000), {0.1, 0.4, 0.2, 0.3});
}

TEST(Sampler, TopPKeepsTheShortestHeadThatReachesP) {
  const auto logits = logs({0.1, 0.4, 0.2, 0.3});
  expect_distribution(Fixture(logits, {.top_p = 0.65F}).histogram(10'000), {0, 4.0 / 7, 0, 3.0 / 7});
  expect_distribution(Fixture(logits, {.top_p = 0.75F}).histogram(10'000), {0, 4.0 / 9, 2.0 / 9, 3.0 / 9});
  for (float tiny : {1e-6F, std::numeric_limits<float>::denorm_min(), 0.0F}) {
    expect_distribution(Fixture(logits, {.top_p = tiny}).histogram(100), {0, 1, 0, 0});
  }
  // Of what top-k left: 0.4 of 0.7 is more than a half.
  expect_distribution(Fixture(logits, {.top_k = 2, .top_p = 0.5F}).histogram(100), {0, 1, 0, 0});
}

// The head grows beyond the part that is sorted first.
TEST(Sampler, TopPOfAFlatDistribution) {
  Fixture flat(std::vector<float>(5000, 1.0F), {.top_p = 0.5F});
  std::set<TokenId> seen;
  for (uint64_t i = 0; i < 8000; ++i) seen.insert(flat.at(i).token);
  EXPECT_LE(*seen.rbegin(), 2500U);
  EXPECT_GT(seen.size(), 2300U);
}

TEST(Sampler, MinPIsRelativeToTheBest) {
  const auto logits = logs({0.5, 0.3, 0.15, 0.05});
  expect_distribution(Fixture(logits, {.min_p = 0.4F}).histogram(10'000), {0.625, 0.375, 0, 0});
  expect_distribution(Fixture(logits, {.min_p = 1.0F}).histogram(100), {1, 0, 0, 0});
  expect_distribution(Fixture(logits, {.min_p = 7.0F}).histogram(100), {1, 0, 0, 0});
}

TEST(Sampler, ATinyTemperatureIsGreedy) {
  for (float t : {1e-6F, std::numeric_limits<float>::min(), std::numeric_limits<float>::denorm_min()}) {
    expect_distribution(Fixture({1, 3, 2}, {.temperature = t}).histogram(100), {0, 1, 0});
  }
}

TEST(Sampler, DependsOnSeedAndPositionOnly) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(std::sin(static_cast<double>(i)));
  Fixture a(logits, {.top_p = 0.9F, .seed = 5});
  Fixture b(logits, {.top_p = 0.9F, .seed = 5});
  Fixture c(logits, {.top_p = 0.9F, .seed = 6});
  std::vector<TokenId> forward;
  for (uint64_t i = 0; i < 50; ++i) forward.push_back(a.at(i).token);
  int different = 0;
  for (uint64_t i = 50; i-- > 0;) {
    EXPECT_EQ(b.at(i).token, forward[i]);
    different += c.at(i).token != forward[i] ? 1 : 0;
  }
  EXPECT_GT(different, 40);
}

TEST(Sampler, Penalties) {
  // Repetition: seen in prompt or answer; above zero divided, below multiplied.
  EXPECT_EQ(Fixture({4, 3, 0}, {.temperature = 0, .repetition_penalty = 2}, {0}).at(0).token, 1U);
  EXPECT_EQ(Fixture({-1, -1.5F, -9}, {.temperature = 0, .repetition_penalty = 2}, {}, {0}).at(0).token, 1U);
  // Presence and frequency: the answer only.
  EXPECT_EQ(Fixture({4, 3, 0}, {.temperature = 0, .presence_penalty = 2}, {0}).at(0).token, 0U);
  EXPECT_EQ(Fixture({4, 3, 0}, {.temperature = 0, .presence_penalty = 2}, {}, {0}).at(0).token, 1U);
  const SamplingParams frequency{.temperature = 0, .frequency_penalty = 0.4F};
  EXPECT_EQ(Fixture({4, 3, 0}, frequency, {}, {0, 0}).at(0).token, 0U);
  EXPECT_EQ(Fixture({4, 3, 0}, frequency, {}, {0, 0, 0}).at(0).token, 1U);
}

TEST(Sampler, CountsWhatItIsTold) {
  Fixture live({4, 3, 0}, {.temperature = 0, .frequency_penalty = 0.4F});
  std::vector<TokenId> tokens;
  for (uint64_t i = 0; i < 8; ++i) {
    tokens.push_back(live.at(i).token);
    live.slot.add(tokens.back());
  }
  EXPECT_THAT(tokens, ElementsAre(0U, 0U, 0U, 1U, 0U, 1U, 0U, 1U));
  // After a preemption the counts come from the tokens so far.
  Fixture resumed({4, 3, 0}, {.temperature = 0, .frequency_penalty = 0.4F}, {}, {0, 0, 0, 1, 0, 1, 0});
  EXPECT_EQ(resumed.at(7).token, tokens[7]);
  // A slot that is used again remembers nothing.
  live.slot.start({.temperature = 0, .frequency_penalty = 0.4F}, {}, {}, 3);
  EXPECT_EQ(live.at(0).token, 0U);
  // Tokens of another vocabulary are no reason to write beyond the end.
  const std::vector<TokenId> far = {7'000'000};
  live.slot.start({.temperature = 0, .repetition_penalty = 2}, far, far, 3);
  EXPECT_EQ(live.at(0).token, 0U);
}

TEST(Sampler, MasksStopTokens) {
  Fixture f({1, 5, 4}, {.temperature = 0});
  const std::vector<TokenId> stop = {1, 4'000'000};
  auto token = [&](bool mask) {
    return f.sampler.sample(f.logits, f.slot, {.mask_stop_tokens = mask, .stop_tokens = stop}, {}).token;
  };
  EXPECT_EQ(token(false), 1U);
  EXPECT_EQ(token(true), 2U);
  const std::vector<TokenId> all = {0, 1, 2};
  EXPECT_TRUE(f.sampler.sample(f.logits, f.slot, {.mask_stop_tokens = true, .stop_tokens = all}, {}).not_finite);
  Fixture random({1, 50, 1}, {.temperature = 1});
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_NE(
        random.sampler
            .sample(random.logits, random.slot, {.position = i, .mask_stop_tokens = true, .stop_tokens = stop}, {})
            .token,
        1U);
  }
}

TEST(Sampler, LogprobsAreThoseOfTheModel) {
  // Neither temperature nor penalties nor masks change them.
  Fixture f(logs({0.2, 0.5, 0.3}), {.temperature = 0, .repetition_penalty = 100}, {1});
  std::vector<engine::TopLogprob> top(3);
  const Sample s = f.at(0, top);
  EXPECT_NE(s.token, 1U);
  EXPECT_NEAR(s.logprob, std::log(s.token == 0 ? 0.2 : 0.3), 1e-5);
  const TokenId ids[] = {1, 2, 0};
  const double probabilities[] = {0.5, 0.3, 0.2};
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(top[i].id, ids[i]);
    EXPECT_NEAR(top[i].logprob, std::log(probabilities[i]), 1e-5);
    EXPECT_EQ(top[i].rank, i + 1);
  }
  std::vector<engine::TopLogprob> equals(2);
  Fixture({7, 7, 7}, {.temperature = 0}).at(0, equals);
  EXPECT_EQ(equals[0].id, 0U);
  EXPECT_EQ(equals[1].id, 1U);
  EXPECT_NEAR(equals[0].logprob, -std::log(3.0), 1e-5);
}

TEST(Sampler, ReportsLogitsThatAreNotFinite) {
  const float nan = std::nanf("");
  const std::vector<std::vector<float>> rows = {
      {nan, 1, 2}, {1, 2, nan}, {1, kInfinity, 2}, {nan, nan, nan}, {-kInfinity, -kInfinity, -kInfinity}};
  for (const auto& row : rows) {
    for (const SamplingParams& params : {SamplingParams{.temperature = 0}, SamplingParams{.top_k = 2, .top_p = 0.5F},
                                         SamplingParams{.repetition_penalty = 2, .frequency_penalty = 1}}) {
      std::vector<engine::TopLogprob> top(2, {.id = 9, .logprob = 9, .rank = 9});
      const Sample s = Fixture(row, params, {0, 1}, {1}).at(0, top);
      EXPECT_TRUE(s.not_finite);
      EXPECT_EQ(s.token, 0U);
      EXPECT_EQ(top[0].id, 0U) << "nothing stale";
    }
  }
  EXPECT_FALSE(Fixture({-kInfinity, 1, 2}, {.temperature = 1}).at(0).not_finite);
  expect_distribution(Fixture({-kInfinity, 1, -kInfinity}, {.top_p = 0.99F}).histogram(100), {0, 1, 0});
}

TEST(Sampler, LogitBiasComesBeforeEverythingElse) {
  // Token 2 is the best with its bias, until the penalty halves what the bias made of it.
  SamplingParams params{.temperature = 0, .logit_bias = {{2, 5.0F}, {0, -kInfinity}, {99, 1.0F}}};
  Fixture biased({3.0F, 2.0F, 1.0F}, params);
  std::vector<engine::TopLogprob> top(3);
  const Sample sample = biased.at(0, top);
  EXPECT_EQ(sample.token, 2U);
  EXPECT_EQ(top[0].id, 0U) << "log-probabilities are the model's";
  EXPECT_NEAR(sample.logprob, 1.0 - std::log(std::exp(3.0) + std::exp(2.0) + std::exp(1.0)), 1e-6);
  params.repetition_penalty = 4.0F;
  EXPECT_EQ(Fixture({3.0F, 2.0F, 1.0F}, params, {2}).at(0).token, 1U);
  // What is forbidden is never drawn.
  EXPECT_EQ(Fixture({3.0F, 2.0F, 1.0F}, {.logit_bias = {{0, -kInfinity}}}).histogram(500)[0], 0U);
  // All of them: the row is in error, and no token is made up.
  const SamplingParams none{.logit_bias = {{0, -kInfinity}, {1, -kInfinity}}};
  EXPECT_TRUE(Fixture({1.0F, 2.0F}, none).at(0).not_finite);
}

TEST(Sampler, BadWords) {
  const SamplingParams params{.temperature = 0, .bad_words = {{0}, {5, 4, 3}, {4, 2}, {99}, {3, 99}}};
  const std::vector<float> logits = {9, 1, 7, 8, 5, 6};
  // The single token never, the end of a sequence only after its beginning.
  EXPECT_EQ(Fixture(logits, params).at(0).token, 3U);
  EXPECT_EQ(Fixture(logits, params, {5, 4}).at(0).token, 3U) << "the prompt is no part of the answer";
  EXPECT_EQ(Fixture(logits, params, {}, {5, 4}).at(0).token, 5U);
  EXPECT_EQ(Fixture(logits, params, {}, {1, 4}).at(0).token, 3U);
  EXPECT_EQ(Fixture(logits, params, {}, {4, 5}).at(0).token, 3U);
  // Token by token, as after a start with the same answer.
  Fixture step(logits, params);
  for (const TokenId token : {1U, 5U}) step.slot.add(token);
  EXPECT_EQ(step.at(2).token, 3U);
  step.slot.add(4);
  EXPECT_EQ(step.at(3).token, 5U);
  step.slot.add(1);
  EXPECT_EQ(step.at(4).token, 3U);
}

TEST(Sampler, Scores) {
  Sampler sampler(4);
  const std::vector<float> logits = {0.5F, 2.0F, -1.0F, 1.0F};
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit);
  std::vector<engine::TopLogprob> top(2);
  EXPECT_NEAR(sampler.score(logits, 2, top), -1.0 - std::log(sum), 1e-6);
  EXPECT_EQ(top[0].id, 1U);
  EXPECT_EQ(top[1].id, 3U);
  EXPECT_EQ(top[1].rank, 2U);
  EXPECT_NEAR(top[0].logprob, 2.0 - std::log(sum), 1e-6);
  EXPECT_EQ(sampler.score(std::vector<float>(4, std::nanf("")), 2, top), -kInfinity);
  EXPECT_EQ(top[0].rank, 0U);
}

}  // namespace
}  // namespace dyn::native
