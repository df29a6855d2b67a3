#include "native/loop/plan_builder.h"

#include <cassert>

namespace dyn::native {
namespace {

void add_slot_start(Sequence& sequence, StepPlan& plan) {
  if (sequence.slot_started) return;
  sequence.slot_started = true;
  const auto known = std::span<const TokenId>(sequence.tokens);
  plan.slot_starts.push_back({.slot = sequence.slot,
                              .sampling = sequence.sampling,
                              .prompt = known.first(sequence.prompt_length),
                              .generated = known.subspan(sequence.prompt_length)});
}

// True when the row's token is one that the step before samples.
bool add_tokens(const ScheduledRow& row, StepPlan& plan) {
  const Sequence& sequence = *row.sequence;
  bool pending = false;
  for (uint32_t position = row.begin; position < row.begin + row.count; ++position) {
    const bool known = position < sequence.tokens.size();
    assert(known || position == sequence.tokens.size());
    plan.tokens.push_back(known ? sequence.tokens[position] : kTokenOfPreviousStep);
    plan.from_sample.push_back(known ? 0 : sequence.pending_sample);
    plan.positions.push_back(static_cast<int32_t>(position));
    pending = pending || !known;
  }
  return pending;
}

void add_sample(uint32_t row, const Sequence& sequence, StepPlan& plan) {
  // The token sampled now comes after those collected and those still pending; its own was counted by the scheduler.
  const uint32_t index = sequence.length() - 1 - sequence.prompt_length;
  plan.samples.push_back({.row = row,
                          .slot = sequence.slot,
                          .position = index,
                          .logprobs = sequence.logprobs ? static_cast<int32_t>(*sequence.logprobs) : -1,
                          .mask_stop_tokens = index < sequence.min_tokens && !sequence.stop_tokens.empty(),
                          .stop_tokens = sequence.stop_tokens});
}

}  // namespace

void build_plan(const Schedule& schedule, uint32_t tokens_per_block, StepPlan& plan) {
  plan.clear();
  plan.row_offsets.push_back(0);
  plan.page_offsets.push_back(0);
  bool any_pending = false;
  for (const ScheduledRow& row : schedule.rows) {
    Sequence& sequence = *row.sequence;
    add_slot_start(sequence, plan);
    any_pending |= add_tokens(row, plan);
    const uint32_t context = row.begin + row.count;
    const auto pages = sequence.table.pages().first((context + tokens_per_block - 1) / tokens_per_block);
    plan.pages.insert(plan.pages.end(), pages.begin(), pages.end());
    plan.context_lens.push_back(static_cast<int32_t>(context));
    if (row.samples) {
      add_sample(static_cast<uint32_t>(plan.num_rows()), sequence, plan);
      sequence.pending_sample = static_cast<uint32_t>(plan.samples.size() - 1);
    }
    plan.row_offsets.push_back(static_cast<uint32_t>(plan.tokens.size()));
    plan.page_offsets.push_back(static_cast<uint32_t>(plan.pages.size()));
  }
  if (!any_pending) plan.from_sample.clear();
}

}  // namespace dyn::native
