#include "native/exec/step_plan.h"

namespace dyn::native {

void StepPlan::clear() {
  tokens.clear();
  from_sample.clear();
  positions.clear();
  row_offsets.clear();
  context_lens.clear();
  pages.clear();
  page_offsets.clear();
  long_rope.clear();
  page_copies.clear();
  slot_starts.clear();
  samples.clear();
  prompt_logprobs.clear();
}

}  // namespace dyn::native
