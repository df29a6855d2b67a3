// A step of the native engine allocates nothing while requests decode.
#include <gtest/gtest.h>

#include "base/test_allocations.h"
#include "engine/engine_contract.h"
#include "native/loop/native_stepper.h"

namespace dyn::native {
namespace {

// Samples token 7, always.
class ConstantExecutor final : public Executor {
 public:
  explicit ConstantExecutor(uint32_t depth) : depth_(depth) {}
  [[nodiscard]] const ExecutorLimits& limits() const override { return limits_; }
  [[nodiscard]] uint32_t pipeline_depth() const override { return depth_; }
  Result<void> enqueue(const StepPlan& plan) override {
    samples_[next_++ % 2] = plan.samples.size();
    return {};
  }
  Result<void> collect(StepResult& result) override {
    const size_t samples = samples_[collected_++ % 2];
    result.tokens.assign(samples, 7);
    result.logprobs.assign(samples, 0);
    result.not_finite.assign(samples, 0);
    result.top_offsets.assign(samples + 1, 0);
    return {};
  }
  [[nodiscard]] uint64_t active_bytes(const StepPlan&) const override { return 0; }

 private:
  const ExecutorLimits limits_{.max_batch_size = 16, .max_num_tokens = 64, .tokens_per_block = 8, .num_pages = 2000};
  const uint32_t depth_;
  size_t samples_[2] = {0, 0};
  size_t next_ = 0;
  size_t collected_ = 0;
};

class NativeAllocation : public ::testing::TestWithParam<uint32_t> {};

TEST_P(NativeAllocation, NothingPerToken) {
  SKIP_UNLESS_ALLOCATIONS_ARE_COUNTED();
  NativeStepper stepper({.record_kv_events = false, .warm_up = false}, std::make_unique<ConstantExecutor>(GetParam()),
                        {.vocab_size = 10, .max_seq_len = 600});
  for (engine::RequestId id = 0; id < 16; ++id) stepper.submit(engine::contract_request(id, {1, 2, 3}, 500));
  engine::StepOutput out;
  const auto run_until = [&](uint64_t steps) {
    while (stepper.stats().steps < steps) ASSERT_TRUE(stepper.turn(out).ok());
  };
  // A plan's block tables grow with the text, by doubling: let them become as large as they will be.
  run_until(300);
  const size_t before = allocations();
  run_until(400);
  EXPECT_LE(allocations() - before, 2U) << "for 100 steps of 16 requests, 12 blocks each";
  EXPECT_EQ(out.requests.size(), 16U);
  EXPECT_GT(allocations(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Depths, NativeAllocation, ::testing::Values(1, 2));

}  // namespace
}  // namespace dyn::native
