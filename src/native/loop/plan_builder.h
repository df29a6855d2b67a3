// Turns a Schedule into the StepPlan of an executor.
//
//   build_plan(schedule, tokens_per_block, plan);
//
// Rows keep their order; a row that several choices begin with has a sample for each. A sequence's slot is announced
// (SlotStart) with its first row after an admission. The token of a row whose value is still being sampled is named by
// its sampling row in the plan before (Sequence::pending_sample), which is updated here; so plans must be enqueued in
// the order they are built. The plan refers to the sequences' stop tokens until it is collected, and to their tokens
// until it is enqueued. Thread rules: the engine thread; reuses the plan's memory.
#pragma once

#include <cstdint>

#include "native/exec/step_plan.h"
#include "native/sched/scheduler.h"

namespace dyn::native {

// Tokens of the row, from its first on, whose followers' log-probabilities the plan asks for.
uint32_t scored_tokens(const ScheduledRow& row);

void build_plan(const Schedule& schedule, uint32_t tokens_per_block, StepPlan& plan);

}  // namespace dyn::native
