// Full load on the whole engine with a real model and a pool that is far too small: every answer has the same bits as
// the one that an idle engine gives.
//
//   DYN_SOAK_SECONDS=3600 build/release/bin/native_test --gtest_filter='NativeSoak.*'
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>

#include "base/env.h"
#include "engine/engine_contract.h"
#include "native/load_engine.h"
#include "native/testing/golden_models.h"

namespace dyn::native {
namespace {

using engine::Request;
using engine::RequestId;
using llm::FinishReason;

constexpr char kModel[] = "random/llama3";
constexpr uint32_t kVocab = 384;
constexpr uint32_t kMaxSeqLen = 200;

// All that is said of a request.
struct Said {
  struct Choice {
    std::vector<TokenId> tokens;
    std::vector<float> logprobs;
    std::vector<TokenId> top;
    FinishReason finish = FinishReason::kNone;
    bool operator==(const Choice&) const = default;
  };
  std::map<uint32_t, Choice> choices;
  std::vector<float> prompt;
  bool over = false;
  bool operator==(const Said&) const = default;
};

class Listener final : public engine::Observer {
 public:
  void on_step(const engine::StepOutput& step) noexcept override {
    const std::lock_guard lock(mutex_);
    for (const engine::RequestOutput& output : step.requests) {
      Said& said = said_[output.id];
      Said::Choice& choice = said.choices[output.choice];
      choice.tokens.insert(choice.tokens.end(), output.tokens.begin(), output.tokens.end());
      choice.logprobs.insert(choice.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
      for (const auto& top : output.top) choice.top.push_back(top.id);
      choice.finish = output.finish;
      for (const auto& score : output.prompt_logprobs) said.prompt.push_back(score.logprob);
      if (output.finish == FinishReason::kNone || output.more_choices) continue;
      said.over = true;
      over_.push_back(output.id);
    }
    changed_.notify_all();
  }
  void on_fatal(const Error& error) noexcept override {
    ADD_FAILURE() << error.message;
    const std::lock_guard lock(mutex_);
    dead_ = true;
    changed_.notify_all();
  }

  // Requests that ended since the last call; waits until there is one.
  std::vector<std::pair<RequestId, Said>> ended(std::chrono::milliseconds patience) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, patience, [&] { return !over_.empty() || dead_; });
    std::vector<std::pair<RequestId, Said>> ended;
    for (const RequestId id : over_) ended.emplace_back(id, std::move(said_.extract(id).mapped()));
    over_.clear();
    return ended;
  }
  bool dead() {
    const std::lock_guard lock(mutex_);
    return dead_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Said> said_;
  std::vector<RequestId> over_;
  bool dead_ = false;
};

std::unique_ptr<engine::Engine> engine_with(uint64_t kv_tokens, uint32_t batch, CapacityPolicy policy) {
  auto loaded = load_engine({.model = test_model(kModel),
                             .cpu_path = CpuPathChoice::kOracle,
                             .max_batch_size = batch,
                             .max_num_tokens = 40,
                             .max_seq_len = kMaxSeqLen,
                             .tokens_per_block = 8,
                             .kv_cache_bytes = uint64_t{1} << 30,
                             .kv_cache_max_tokens = kv_tokens,
                             .threads = 2,
                             .engine = {.capacity_policy = policy}});
  EXPECT_TRUE(loaded.ok()) << loaded.error().message << "\nscripts/models makes the model.";
  return std::move(loaded->engine);
}

// Short and long prompts with common beginnings, every option that the engine has.
std::vector<Request> make_requests(size_t count) {
  std::mt19937 random(7);
  const auto below = [&](uint32_t limit) { return static_cast<uint32_t>(random() % limit); };
  std::vector<Request> requests;
  for (size_t i = 0; i < count; ++i) {
    Request request;
    const uint32_t shared = 30 * below(3);
    for (uint32_t t = 0; t < shared; ++t) request.token_ids.push_back(10 + (t * 7) % 300);
    for (uint32_t t = 1 + below(i % 5 == 0 ? 100 : 12); t > 0; --t) request.token_ids.push_back(8 + below(370));
    request.max_tokens = 1 + below(i % 7 == 0 ? 60 : 16);
    request.priority = static_cast<int32_t>(below(2));
    request.sampling.temperature = below(2) == 0 ? 0.0F : 1.2F;
    request.sampling.seed = i;
    if (below(3) == 0) request.sampling.top_p = 0.9F;
    if (below(3) == 0) request.sampling.repetition_penalty = 1.3F;
    if (below(4) == 0) request.sampling.logit_bias = {{below(kVocab), 4.0F}, {below(kVocab), -100.0F}};
    if (below(4) == 0) request.sampling.bad_words = {{below(kVocab)}, {below(kVocab), below(kVocab)}};
    if (below(3) == 0) request.logprobs = below(4);
    if (below(5) == 0) request.prompt_logprobs = below(3);
    if (below(4) == 0) request.num_choices = 2 + below(3);
    if (below(3) == 0) request.stop_token_ids = {below(kVocab), below(kVocab), below(kVocab)};
    requests.push_back(std::move(request));
  }
  return requests;
}

std::vector<Said> answers_of_an_idle_engine(const std::vector<Request>& requests) {
  Listener listener;
  auto engine = engine_with(uint64_t{64} * kMaxSeqLen, 8, CapacityPolicy::kGuaranteedNoEvict);
  EXPECT_TRUE(engine->start(listener).ok());
  std::vector<Said> answers;
  for (size_t i = 0; i < requests.size() && !listener.dead(); ++i) {
    Request request = requests[i];
    request.id = i;
    request.cache_salt = std::to_string(i);  // nothing is found in the cache
    EXPECT_TRUE(engine->submit(std::move(request)).ok());
    auto ended = listener.ended(std::chrono::seconds(60));
    if (ended.size() != 1) {
      ADD_FAILURE() << "request " << i << " did not end";
      break;
    }
    answers.push_back(std::move(ended.front().second));
  }
  EXPECT_EQ(engine->stats().preemptions, 0U);
  engine->stop();
  return answers;
}

double soak_seconds() {
  return std::stod(env("DYN_SOAK_SECONDS").value_or("4"));
}

class NativeSoak : public ::testing::TestWithParam<CapacityPolicy> {};

TEST_P(NativeSoak, EveryAnswerIsThatOfAnIdleEngine) {
  const std::vector<Request> requests = make_requests(60);
  const std::vector<Said> expected = answers_of_an_idle_engine(requests);
  ASSERT_EQ(expected.size(), requests.size());

  Listener listener;
  auto engine = engine_with(kMaxSeqLen, 6, GetParam());  // room for the longest one and no more
  ASSERT_TRUE(engine->start(listener).ok());
  const auto seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  std::map<RequestId, size_t> open;  // which of the requests
  RequestId next = 1;
  uint64_t finished = 0;
  uint64_t aborted = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(soak_seconds());
  for (bool more = true; (more || !open.empty()) && !listener.dead();) {
    more = std::chrono::steady_clock::now() < end;
    while (more && open.size() < 20) {
      const size_t which = random() % requests.size();
      Request request = requests[which];
      request.id = next++;
      open[request.id] = which;
      ASSERT_TRUE(engine->submit(std::move(request)).ok());
    }
    if (random() % 10 == 0 && !open.empty()) {
      const auto victim = std::next(open.begin(), static_cast<std::ptrdiff_t>(random() % open.size()));
      engine->abort(victim->first);
      open.erase(victim);
      ++aborted;
    }
    for (const auto& [id, said] : listener.ended(std::chrono::milliseconds(20))) {
      const auto found = open.find(id);
      if (found == open.end()) continue;  // it ended before the abort was seen
      ASSERT_TRUE(said == expected[found->second]) << "request " << found->second << " of " << requests.size();
      open.erase(found);
      ++finished;
    }
  }
  EXPECT_TRUE(engine->drain(std::chrono::seconds(60)));
  const engine::Stats stats = engine->stats();
  EXPECT_GT(finished, 20U);
  EXPECT_EQ(stats.running + stats.waiting, 0U);
  EXPECT_EQ(stats.kv_blocks_used, 0U);
  EXPECT_EQ(stats.requests_finished + stats.requests_aborted, next - 1);
  EXPECT_EQ(stats.preemptions > 0, GetParam() == CapacityPolicy::kMaxUtilization) << stats.preemptions;
  EXPECT_GT(stats.kv_block_hits, 0U);
  EXPECT_GT(stats.kv_block_evictions, 0U);
  std::printf("%llu answers, %llu aborts, %llu preemptions, %llu evictions\n",
              static_cast<unsigned long long>(finished), static_cast<unsigned long long>(aborted),
              static_cast<unsigned long long>(stats.preemptions),
              static_cast<unsigned long long>(stats.kv_block_evictions));
  engine->stop();
}

INSTANTIATE_TEST_SUITE_P(Policies, NativeSoak,
                         ::testing::Values(CapacityPolicy::kGuaranteedNoEvict, CapacityPolicy::kMaxUtilization));

}  // namespace
}  // namespace dyn::native
