// The contract of Engine as tests: every engine passes the same suite.
//
//   INSTANTIATE_TEST_SUITE_P(Mock, EngineContract, ::testing::Values(ContractEngine{"mock", make_it}), contract_name);
//
// The tests are in engine_contract_test.cc, to be compiled into each test program that has such an instance. `make`
// builds an engine of the size asked for, whose greedy answers are a function of the prompt alone. Recorder and Latch
// are useful to other tests of engines. Thread rules: Recorder is filled on the engine thread and read by the test's.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/test_support.h"
#include "engine/engine.h"

namespace dyn::engine {

struct ContractSetup {
  uint32_t vocab_size = 1000;
  uint32_t max_batch_size = 4;
  uint32_t max_seq_len = 64;
  uint32_t kv_block_size = 4;
  uint32_t total_kv_blocks = 64;
  uint32_t max_queue_size = 1'000'000;
};

struct ContractEngine {
  std::string name;
  std::function<std::unique_ptr<Engine>(const ContractSetup&)> make;
  bool reuses_prefixes = false;
};

inline std::string contract_name(const ::testing::TestParamInfo<ContractEngine>& param) {
  return param.param.name;
}

// What an observer saw of one request.
struct Answer {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TopLogprob>> top;
  int ends = 0;
  FinishReason finish = FinishReason::kNone;
  std::optional<TokenId> stop_token;
  std::optional<Error> error;
  uint32_t prompt_tokens = 0;
  uint32_t completion_tokens = 0;
  uint32_t cached_tokens = 0;
};

class Recorder final : public Observer {
 public:
  void on_step(const StepOutput& step) noexcept override {
    if (before_step) before_step(step);
    std::lock_guard lock(mutex_);
    ++calls_;
    last_stats_ = step.stats;
    if (step.step < last_step_) ADD_FAILURE() << "step " << step.step << " after " << last_step_;
    last_step_ = step.step;
    events_ += step.kv_events.size();
    for (const RequestOutput& output : step.requests) record(output);
    changed_.notify_all();
  }
  void on_fatal(const Error& error) noexcept override {
    std::lock_guard lock(mutex_);
    if (fatal_) ADD_FAILURE() << "on_fatal was called twice";
    fatal_ = error;
    changed_.notify_all();
  }

  // Runs on the engine thread before the step is recorded; set it before start().
  std::function<void(const StepOutput&)> before_step;

  // The answer of a request, when it ended. Fails the test when it does not.
  Answer ended(RequestId id) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return answers_[id].ends > 0; })) {
      ADD_FAILURE() << "request " << id << " did not end";
    }
    return answers_[id];
  }
  void wait_for_tokens(RequestId id, size_t count) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [&] { return answers_[id].tokens.size() >= count; })) {
      ADD_FAILURE() << "request " << id << " got no " << count << " tokens";
    }
  }
  std::optional<Error> wait_for_death() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kPatience, [&] { return fatal_.has_value(); });
    return fatal_;
  }
  std::map<RequestId, Answer> answers() {
    std::lock_guard lock(mutex_);
    return answers_;
  }
  std::vector<RequestId> end_order() {
    std::lock_guard lock(mutex_);
    return end_order_;
  }
  uint64_t calls() {
    std::lock_guard lock(mutex_);
    return calls_;
  }
  uint64_t kv_events() {
    std::lock_guard lock(mutex_);
    return events_;
  }

  static constexpr std::chrono::seconds kPatience{60};

 private:
  void record(const RequestOutput& output) {
    Answer& answer = answers_[output.id];
    if (answer.ends > 0) ADD_FAILURE() << "request " << output.id << " got an output after its end";
    if (!output.logprobs.empty() && output.logprobs.size() != output.tokens.size()) ADD_FAILURE() << "logprobs";
    if (output.top.size() != output.tokens.size() * output.top_width) ADD_FAILURE() << "alternatives";
    answer.tokens.insert(answer.tokens.end(), output.tokens.begin(), output.tokens.end());
    answer.logprobs.insert(answer.logprobs.end(), output.logprobs.begin(), output.logprobs.end());
    for (size_t i = 0; i < output.tokens.size(); ++i) {
      const auto begin = output.top.begin() + static_cast<std::ptrdiff_t>(i * output.top_width);
      answer.top.emplace_back(begin, begin + output.top_width);
    }
    if ((output.finish == FinishReason::kError) != (output.error != nullptr)) ADD_FAILURE() << "error without kError";
    if (output.finish == FinishReason::kNone) return;
    ++answer.ends;
    answer.finish = output.finish;
    answer.stop_token = output.stop_token;
    if (output.error != nullptr) answer.error = *output.error;
    answer.prompt_tokens = output.prompt_tokens;
    answer.completion_tokens = output.completion_tokens;
    answer.cached_tokens = output.cached_tokens;
    end_order_.push_back(output.id);
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Answer> answers_;
  std::vector<RequestId> end_order_;
  std::optional<Error> fatal_;
  Stats last_stats_;
  uint64_t last_step_ = 0;
  uint64_t calls_ = 0;
  uint64_t events_ = 0;
};

// Holds the engine thread inside on_step until opened, so that a test can arrange the queue behind its back.
class Latch {
 public:
  void wait() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  void wait_until_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int waiting_ = 0;
};

inline std::vector<TokenId> contract_prompt(size_t length, TokenId first = 10) {
  std::vector<TokenId> prompt(length);
  for (size_t i = 0; i < length; ++i) prompt[i] = static_cast<TokenId>(first + i);
  return prompt;
}

inline Request contract_request(RequestId id, std::vector<TokenId> prompt, uint32_t max_tokens) {
  Request request{.id = id, .token_ids = std::move(prompt), .max_tokens = max_tokens};
  request.sampling.temperature = 0;
  return request;
}

class EngineContract : public ::testing::TestWithParam<ContractEngine> {
 protected:
  void launch(const ContractSetup& setup = {}) {
    engine_ = GetParam().make(setup);
    ASSERT_NE(engine_, nullptr);
    ASSERT_EQ(engine_->health(), Health::kStarting);
    const auto started = engine_->start(recorder_);
    ASSERT_TRUE(started.ok()) << started.error().message;
    ASSERT_EQ(engine_->health(), Health::kReady);
  }
  void TearDown() override {
    if (engine_) engine_->stop();
  }
  void accept(Request request) {
    const auto accepted = engine_->submit(std::move(request));
    ASSERT_TRUE(accepted.ok()) << accepted.error().message;
  }
  Answer run(Request request) {
    const RequestId id = request.id;
    accept(std::move(request));
    return recorder_.ended(id);
  }
  // Statistics are published after the last output: give them the time.
  void expect_empty() {
    EXPECT_TRUE(eventually([&] {
      const Stats stats = engine_->stats();
      return stats.kv_blocks_used == 0 && stats.running == 0 && stats.waiting == 0;
    }));
  }

  Recorder recorder_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace dyn::engine
