#include "native/exec/cpu/attention_items.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dyn::native {

void AttentionItems::plan(const StepPlan& step) {
  items.clear();
  splits.clear();
  partials = 0;
  for (uint32_t r = 0; r < step.num_rows(); ++r) {
    const uint32_t begin = step.row_offsets[r];
    const uint32_t end = step.row_offsets[r + 1];
    const uint32_t pages = step.page_offsets[r + 1] - step.page_offsets[r];
    const uint32_t parts = (pages + part_pages - 1) / part_pages;
    if (end - begin == 1 && parts > 1) {
      splits.push_back({.token = begin, .partial = partials, .parts = parts});
      for (uint32_t part = 0; part < parts; ++part) {
        items.push_back(
            {.row = r, .token = begin, .tokens = 1, .part_begin = part, .part_end = part + 1, .partial = partials++});
      }
      continue;
    }
    for (uint32_t token = begin; token < end; token += block_tokens) {
      const uint32_t tokens = std::min(block_tokens, end - token);
      items.push_back(
          {.row = r, .token = token, .tokens = tokens, .part_begin = 0, .part_end = parts, .partial = kWhole});
    }
  }
}

void merge_softmax(uint32_t head_dim, float* sum, float& max, float& weight, const float* part_sum, float part_max,
                   float part_weight) {
  if (part_max == -std::numeric_limits<float>::infinity()) return;
  const float top = std::max(max, part_max);
  const float keep = std::exp(max - top);
  const float add = std::exp(part_max - top);
  for (uint32_t d = 0; d < head_dim; ++d) sum[d] = sum[d] * keep + part_sum[d] * add;
  weight = weight * keep + part_weight * add;
  max = top;
}

}  // namespace dyn::native
