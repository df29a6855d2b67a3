// AttentionItems: how attention of a ragged batch is cut into work items, and how their results are put together; for
// both paths of the CPU executor.
//
//   AttentionItems cut(block_tokens, part_pages);
//   cut.plan(step);                                    // once a step
//   for (const AttentionItems::Item& item : cut.items) ...
//
// A sequence is summed in parts of part_pages pages; parts are merged in ascending order. A decode row's parts are
// items of their own, so that a long sequence keeps every thread busy; a block of a prompt does its parts one after the
// other. The arithmetic is the same, so a token's result does not depend on which of the two it was. Thread rules:
// plain value.
#pragma once

#include <cstdint>
#include <vector>

#include "native/exec/step_plan.h"

namespace dyn::native {

struct AttentionItems {
  static constexpr uint32_t kWhole = UINT32_MAX;

  struct Item {
    uint32_t row;
    uint32_t token;  // first one, in the flat arrays
    uint32_t tokens;
    uint32_t part_begin;
    uint32_t part_end;
    uint32_t partial;  // kWhole, or the place of its partial results
  };
  // A decode row of several parts: `parts` partial results from `partial` on.
  struct Split {
    uint32_t token;
    uint32_t partial;
    uint32_t parts;
  };

  AttentionItems(uint32_t tokens_of_a_block, uint32_t pages_of_a_part)
      : block_tokens(tokens_of_a_block), part_pages(pages_of_a_part) {}

  void plan(const StepPlan& step);

  uint32_t block_tokens;  // prompt tokens of an item
  uint32_t part_pages;
  std::vector<Item> items;
  std::vector<Split> splits;
  uint32_t partials = 0;
};

// sum += part, for one query's running softmax: sums of exp(s - max) v, the maximum, the sum of exp(s - max).
void merge_softmax(uint32_t head_dim, float* sum, float& max, float& weight, const float* part_sum, float part_max,
                   float part_weight);

}  // namespace dyn::native
