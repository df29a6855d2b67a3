// FakeExecutor: an executor without a model that notices every mistake of the host above it.
//
//   auto executor = std::make_unique<FakeExecutor>(FakeExecutorOptions{.limits = {...}, .pipeline_depth = 2});
//   fake_answer(prompt, 10, sampling, vocab_size);   // what a request must get, whatever runs beside it
//   fake_prompt_logprobs(prompt);                    // likewise
//
// Its "KV" of a position is a name of the whole text up to there, computed from the name that it finds in the page of
// the position before. It checks all of a row's context before it uses it: a wrong block table, a page that was given
// away, a skipped or repeated position, a token that is not the one sampled, or a write to a page that another row
// reads breaks the chain, and the step fails with a message (so the engine reports it as fatal). Slots and sampling
// positions are checked likewise. With a window it looks at those pages only that a row sees; with long_rope_from the
// KV of a text that is longer is another one than that of the same text as part of a shorter. A plan is run when it is
// collected, and must not have changed since it was enqueued. Thread rules: those of Executor.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "native/exec/executor.h"

namespace dyn::native {

struct FakeExecutorOptions {
  ExecutorLimits limits;
  uint32_t pipeline_depth = 1;
  uint32_t vocab_size = 1000;
  std::optional<uint64_t> fail_after_steps;    // collect() of a later one is an error
  std::optional<TokenId> not_finite_on_token;  // a row that samples after this token has NaN in its logits
  uint32_t window = 0;                         // of the model; 0: none
  uint32_t long_rope_from = 0;                 // a longer text has other KV; 0: never
};

// The answer of a request that nothing stops, token by token.
std::vector<TokenId> fake_answer(std::span<const TokenId> prompt, size_t count, const engine::SamplingParams& sampling,
                                 uint32_t vocab_size, uint32_t long_rope_from = 0);

// Of each prompt token but the first.
std::vector<float> fake_prompt_logprobs(std::span<const TokenId> prompt, uint32_t long_rope_from = 0);

class FakeExecutor final : public Executor {
 public:
  explicit FakeExecutor(const FakeExecutorOptions& options);

  [[nodiscard]] const ExecutorLimits& limits() const override { return options_.limits; }
  [[nodiscard]] uint32_t pipeline_depth() const override { return options_.pipeline_depth; }
  Result<void> enqueue(const StepPlan& plan) override;
  Result<void> collect(StepResult& result) override;
  [[nodiscard]] uint64_t active_bytes(const StepPlan& plan) const override { return plan.num_tokens(); }

 private:
  // What stands in the pool for one position.
  struct Entry {
    uint64_t name = 0;  // of the text up to and with this position; 0: never written
    int32_t position = -1;
    TokenId token = 0;
  };
  struct Slot {
    bool started = false;
    engine::SamplingParams sampling;
    uint64_t next_position = 0;
  };
  struct Start {
    SlotId slot = 0;
    engine::SamplingParams sampling;
    uint64_t generated = 0;
  };
  struct Pending {
    const StepPlan* plan = nullptr;
    StepPlan copy;  // to see whether the plan was changed
    std::vector<Start> starts;
  };

  static Result<void> check_positions(const StepPlan& plan);
  Result<void> check_writes(const StepPlan& plan) const;
  static Result<void> check_copies(const StepPlan& plan);
  void copy_pages(const StepPlan& plan);
  Result<void> run_row(const StepPlan& plan, size_t row);
  void score(const StepPlan& plan, StepResult& result) const;
  Result<void> sample(const StepPlan& plan, const SampleRow& row, StepResult& result);
  Entry& entry(const StepPlan& plan, size_t row, size_t position);

  const FakeExecutorOptions options_;
  std::vector<Entry> pool_;
  std::vector<Slot> slots_;
  std::deque<Pending> queue_;
  std::vector<uint64_t> names_;            // of the text up to each token of the plan
  std::vector<TokenId> row_last_;          // that token
  std::vector<TokenId> previous_samples_;  // of the step before
  size_t samples_enqueued_last_ = 0;
  uint64_t steps_ = 0;
};

}  // namespace dyn::native
