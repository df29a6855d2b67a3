// Checks a StepPlan before an executor follows its indices. A plan that fails is a defect of the scheduler, never of a
// request.
//
//   if (auto checked = check_plan(plan, limits, vocab_size, samples_of_last_step); !checked) return checked.error();
//
// Costs about a nanosecond a token; pure. Whether a page is copied twice is not looked at.
#pragma once

#include "base/result.h"
#include "native/exec/executor.h"
#include "native/exec/step_plan.h"

namespace dyn::native {

// `previous_samples`: sampling rows of the step before, which kTokenOfPreviousStep may name. `window`: of the model
// (ModelConfig::window()), how far back a token looks; 0: to the start, so no kNoPage may stand in a block table.
Result<void> check_plan(const StepPlan& plan, const ExecutorLimits& limits, uint32_t vocab_size,
                        size_t previous_samples, uint32_t window = 0);

}  // namespace dyn::native
