#include "native/exec/plan_check.h"

#include <fmt/format.h>

namespace dyn::native {
namespace {

Error wrong(std::string what) {
  return internal_error("step plan: " + std::move(what));
}

// 0, ascending, ending at `end`.
bool are_offsets(const std::vector<uint32_t>& offsets, size_t end) {
  if (offsets.empty() || offsets.front() != 0 || offsets.back() != end) return false;
  for (size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] <= offsets[i - 1]) return false;
  }
  return true;
}

Result<void> check_tokens(const StepPlan& plan, uint32_t vocab_size, size_t previous_samples) {
  if (plan.positions.size() != plan.tokens.size()) return wrong("one position a token");
  if (!plan.from_sample.empty() && plan.from_sample.size() != plan.tokens.size())
    return wrong("one from_sample a token");
  for (size_t t = 0; t < plan.tokens.size(); ++t) {
    if (plan.positions[t] < 0) return wrong(fmt::format("token {}: position {}", t, plan.positions[t]));
    if (plan.tokens[t] == kTokenOfPreviousStep) {
      if (plan.from_sample.empty() || plan.from_sample[t] >= previous_samples) {
        return wrong(fmt::format("token {} names no sample of the step before", t));
      }
    } else if (plan.tokens[t] >= vocab_size) {
      return wrong(fmt::format("token {}: id {} of a vocabulary of {}", t, plan.tokens[t], vocab_size));
    }
  }
  return {};
}

bool is_page(PageId page, const ExecutorLimits& limits) {
  return page >= 0 && static_cast<uint32_t>(page) < limits.num_pages;
}

// Leading pages that no token of the row looks at.
uint64_t pages_out_of_window(int64_t first_token, uint32_t tokens_per_block, uint32_t window) {
  const int64_t hidden = first_token + 1 - int64_t{window};
  return window == 0 || hidden <= 0 ? 0 : static_cast<uint64_t>(hidden) / tokens_per_block;
}

Result<void> check_pages(const StepPlan& plan, size_t row, const ExecutorLimits& limits, uint32_t window) {
  const auto table =
      std::span(plan.pages).subspan(plan.page_offsets[row], plan.page_offsets[row + 1] - plan.page_offsets[row]);
  const int64_t first = plan.context_lens[row] - int64_t{plan.row_offsets[row + 1] - plan.row_offsets[row]};
  const uint64_t unseen = pages_out_of_window(first, limits.tokens_per_block, window);
  bool leading = true;
  for (size_t i = 0; i < table.size(); ++i) {
    leading = leading && table[i] == kNoPage;
    if (leading && i < unseen) continue;
    if (!is_page(table[i], limits)) return wrong(fmt::format("row {}: page {} is {}", row, i, table[i]));
  }
  return {};
}

Result<void> check_rows(const StepPlan& plan, const ExecutorLimits& limits, uint32_t window) {
  const size_t rows = plan.num_rows();
  if (rows == 0 || rows > limits.max_batch_size)
    return wrong(fmt::format("{} rows, limit {}", rows, limits.max_batch_size));
  if (!are_offsets(plan.row_offsets, plan.tokens.size())) return wrong("row_offsets");
  if (plan.page_offsets.size() != rows + 1 || !are_offsets(plan.page_offsets, plan.pages.size()))
    return wrong("page_offsets");
  if (plan.context_lens.size() != rows) return wrong("one context length a row");
  for (size_t r = 0; r < rows; ++r) {
    const uint64_t tokens = plan.row_offsets[r + 1] - plan.row_offsets[r];
    const int64_t context = plan.context_lens[r];
    if (context < static_cast<int64_t>(tokens))
      return wrong(fmt::format("row {}: context of {} for {} tokens", r, context, tokens));
    const uint64_t pages = (static_cast<uint64_t>(context) + limits.tokens_per_block - 1) / limits.tokens_per_block;
    if (plan.page_offsets[r + 1] - plan.page_offsets[r] != pages) {
      return wrong(fmt::format("row {}: {} pages for a context of {}", r,
                               plan.page_offsets[r + 1] - plan.page_offsets[r], context));
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    if (auto checked = check_pages(plan, r, limits, window); !checked) return checked;
  }
  if (!plan.long_rope.empty() && plan.long_rope.size() != rows) return wrong("one long_rope a row");
  for (const PageCopy& copy : plan.page_copies) {
    if (!is_page(copy.from, limits) || !is_page(copy.to, limits) || copy.from == copy.to)
      return wrong(fmt::format("a copy of page {} to {}", copy.from, copy.to));
  }
  return {};
}

Result<void> check_samples(const StepPlan& plan, const ExecutorLimits& limits) {
  if (plan.samples.size() > limits.max_batch_size)
    return wrong(fmt::format("{} samples of {} slots", plan.samples.size(), limits.max_batch_size));
  for (const SlotStart& start : plan.slot_starts) {
    if (start.slot >= limits.max_batch_size) return wrong(fmt::format("slot {}", start.slot));
  }
  for (size_t s = 0; s < plan.samples.size(); ++s) {
    const SampleRow& sample = plan.samples[s];
    if (sample.row >= plan.num_rows()) return wrong(fmt::format("sample {} of row {}", s, sample.row));
    if (s > 0 && sample.row < plan.samples[s - 1].row) return wrong("sampling rows descend");
    if (sample.slot >= limits.max_batch_size) return wrong(fmt::format("sample {} of slot {}", s, sample.slot));
  }
  return {};
}

Result<void> check_prompt_logprobs(const StepPlan& plan, uint32_t vocab_size) {
  for (size_t q = 0; q < plan.prompt_logprobs.size(); ++q) {
    const PromptLogprobs& wanted = plan.prompt_logprobs[q];
    if (wanted.row >= plan.num_rows() || (q > 0 && wanted.row <= plan.prompt_logprobs[q - 1].row))
      return wrong(fmt::format("prompt log-probabilities {} of row {}", q, wanted.row));
    if (wanted.next.empty() || wanted.next.size() > plan.row_offsets[wanted.row + 1] - plan.row_offsets[wanted.row])
      return wrong(fmt::format("row {}: prompt log-probabilities of {} tokens", wanted.row, wanted.next.size()));
    if (wanted.top > vocab_size) return wrong(fmt::format("{} alternatives", wanted.top));
    for (const TokenId token : wanted.next) {
      if (token >= vocab_size) return wrong(fmt::format("prompt log-probability of token {}", token));
    }
  }
  return {};
}

}  // namespace

Result<void> check_plan(const StepPlan& plan, const ExecutorLimits& limits, uint32_t vocab_size,
                        size_t previous_samples, uint32_t window) {
  if (plan.tokens.empty() || plan.tokens.size() > limits.max_num_tokens) {
    return wrong(fmt::format("{} tokens, limit {}", plan.tokens.size(), limits.max_num_tokens));
  }
  if (auto checked = check_tokens(plan, vocab_size, previous_samples); !checked) return checked;
  if (auto checked = check_rows(plan, limits, window); !checked) return checked;
  if (auto checked = check_samples(plan, limits); !checked) return checked;
  return check_prompt_logprobs(plan, vocab_size);
}

}  // namespace dyn::native
