#include "native/loop/plan_builder.h"

#include <algorithm>
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

void add_sample(uint32_t row, Sequence& sequence, StepPlan& plan) {
  // The token sampled now comes after those collected and those still pending; its own was counted by the scheduler.
  const uint32_t index = sequence.length() - 1 - sequence.prompt_length;
  plan.samples.push_back({.row = row,
                          .slot = sequence.slot,
                          .position = index,
                          .logprobs = sequence.logprobs ? static_cast<int32_t>(*sequence.logprobs) : -1,
                          .mask_stop_tokens = index < sequence.min_tokens && !sequence.stop_tokens.empty(),
                          .stop_tokens = sequence.stop_tokens});
  sequence.pending_sample = static_cast<uint32_t>(plan.samples.size() - 1);
}

void add_prompt_logprobs(uint32_t row, const ScheduledRow& scheduled, StepPlan& plan) {
  const Sequence& sequence = *scheduled.sequence;
  const uint32_t scores = scored_tokens(scheduled);
  if (scores == 0) return;
  plan.prompt_logprobs.push_back({.row = row,
                                  .top = *sequence.prompt_logprobs,
                                  .next = std::span(sequence.tokens).subspan(scheduled.begin + 1, scores)});
}

}  // namespace

uint32_t scored_tokens(const ScheduledRow& row) {
  const Sequence& sequence = *row.sequence;
  const uint32_t end = std::min(row.begin + row.count, sequence.prompt_length - 1);
  // After a preemption the head of the prompt is computed once more.
  return sequence.prompt_logprobs && end > sequence.num_scored && end > row.begin ? end - row.begin : 0;
}

void build_plan(const Schedule& schedule, uint32_t tokens_per_block, StepPlan& plan) {
  plan.clear();
  plan.row_offsets.push_back(0);
  plan.page_offsets.push_back(0);
  plan.page_copies = schedule.copies;
  bool any_pending = false;
  bool any_long_rope = false;
  auto fork = schedule.forks.begin();
  for (uint32_t r = 0; r < schedule.rows.size(); ++r) {
    const ScheduledRow& row = schedule.rows[r];
    Sequence& sequence = *row.sequence;
    add_slot_start(sequence, plan);
    any_pending |= add_tokens(row, plan);
    const uint32_t context = row.begin + row.count;
    const auto pages = sequence.table.pages().first((context + tokens_per_block - 1) / tokens_per_block);
    plan.pages.insert(plan.pages.end(), pages.begin(), pages.end());
    plan.context_lens.push_back(static_cast<int32_t>(context));
    plan.long_rope.push_back(sequence.long_rope ? 1 : 0);
    any_long_rope |= sequence.long_rope;
    add_prompt_logprobs(r, row, plan);
    if (row.samples) add_sample(r, sequence, plan);
    for (; fork != schedule.forks.end() && fork->row == r; ++fork) {
      add_slot_start(*fork->sequence, plan);
      add_sample(r, *fork->sequence, plan);
    }
    plan.row_offsets.push_back(static_cast<uint32_t>(plan.tokens.size()));
    plan.page_offsets.push_back(static_cast<uint32_t>(plan.pages.size()));
  }
  if (!any_pending) plan.from_sample.clear();
  if (!any_long_rope) plan.long_rope.clear();
}

}  // namespace dyn::native
