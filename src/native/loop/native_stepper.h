// NativeStepper: the step loop of the native engine, one turn at a time. See native_engine.h for what a turn does.
//
//   NativeStepper stepper(options, std::move(executor), model);
//   stepper.submit(request);
//   StepOutput out;
//   auto turn = stepper.turn(out);
//
// Ownership: owns executor, pages, scheduler and sequences. A sequence that ended lives on until no step in flight
// names it. Thread rules: one thread at a time. Allocates per request and per stored KV block, not per token.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "engine/stepper.h"
#include "native/exec/executor.h"
#include "native/kv/block_manager.h"
#include "native/native_engine.h"
#include "native/sched/scheduler.h"

namespace dyn::native {

class NativeStepper final : public engine::Stepper {
 public:
  NativeStepper(const NativeEngineOptions& options, std::unique_ptr<Executor> executor, const ModelFacts& model);

  [[nodiscard]] engine::Caps caps() const override { return caps_; }
  Result<void> prepare() override;
  void submit(engine::Request request) override;
  void abort(engine::RequestId id) override;
  Result<engine::Turn> turn(engine::StepOutput& out) override;
  [[nodiscard]] size_t alive() const override { return requests_.size(); }
  [[nodiscard]] engine::Stats stats() const override;

  [[nodiscard]] const BlockManager& blocks() const { return blocks_; }

 private:
  // A row of a step in flight, or a further sample of the row before it.
  struct Row {
    Sequence* sequence = nullptr;
    uint32_t context = 0;  // KV positions computed after the step
    bool samples = false;
    uint32_t scores = 0;        // log-probabilities of prompt tokens
    uint32_t scores_begin = 0;  // position of the first token that they follow
  };
  struct Flight {
    StepPlan plan;
    std::vector<Row> rows;
  };

  Result<bool> enqueue_next();
  void assign_slots();
  Result<void> collect(engine::StepOutput& out);
  Result<void> check_result(const StepPlan& plan) const;
  void take_scores(const Row& row, size_t& score, size_t& top);
  void take_row(const Row& row, size_t sample);
  void take_token(Sequence& sequence, size_t sample);
  void add_output(Sequence& sequence, size_t sample, bool emit, llm::FinishReason finish);
  // Takes the sequence out of everything; it is destroyed here or when the last step that names it is collected. The
  // request is gone with its last choice.
  void end(Sequence& sequence);
  void end_request(engine::RequestId id);
  void drop_ended();

  const std::unique_ptr<Executor> executor_;
  const NativeEngineOptions options_;
  engine::Caps caps_;
  const Error not_finite_;

  BlockManager blocks_;
  Scheduler scheduler_;
  Schedule schedule_;
  std::unordered_map<engine::RequestId, RequestState> requests_;  // alive
  std::vector<std::unique_ptr<Sequence>> ended_;                  // a step in flight names them
  std::vector<SlotId> free_slots_;
  uint64_t last_arrival_ = 0;

  std::vector<Flight> flights_;  // a ring, one for each step that can be in flight
  size_t first_flight_ = 0;
  size_t num_flights_ = 0;

  // Of the step collected last: what StepOutput refers to.
  StepResult result_;
  std::vector<engine::RequestOutput> outputs_;
  std::vector<std::vector<engine::TopLogprob>> prompt_scores_;
  std::vector<llm::KvEvent> kv_events_;
  engine::Stats stats_;
};

}  // namespace dyn::native
