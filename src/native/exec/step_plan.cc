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
  slot_starts.clear();
  samples.clear();
}

}  // namespace dyn::native
