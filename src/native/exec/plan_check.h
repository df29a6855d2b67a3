// Checks a StepPlan before an executor follows its indices. A plan that fails is a defect of the scheduler, never of a
// request.
//
//   if (auto checked = check_plan(plan, limits, vocab_size, samples_of_last_step); !checked) return checked.error();
//
// Costs about a nanosecond a token; pure.
#pragma once

#include "base/result.h"
#include "native/exec/executor.h"
#include "native/exec/step_plan.h"

namespace dyn::native {

// `previous_samples`: sampling rows of the step before, which kTokenOfPreviousStep may name.
Result<void> check_plan(const StepPlan& plan, const ExecutorLimits& limits, uint32_t vocab_size,
                        size_t previous_samples);

}  // namespace dyn::native
