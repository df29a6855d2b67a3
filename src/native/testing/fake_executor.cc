#include "native/testing/fake_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "native/exec/plan_check.h"

namespace dyn::native {
namespace {

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 32)) * 0xD6E8'FEB8'6659'FD93;
  x = (x ^ (x >> 32)) * 0xD6E8'FEB8'6659'FD93;
  return x ^ (x >> 32);
}

constexpr uint64_t kStart = 0x5EED;

uint64_t extend(uint64_t name, TokenId token) {
  return mix(name + 0x9E37'79B9'7F4A'7C15 * (uint64_t{token} + 1)) | 1;
}

TokenId choose(uint64_t name, uint64_t position, const engine::SamplingParams& sampling, uint32_t vocab_size) {
  const uint64_t noise = sampling.greedy() ? 0 : mix(sampling.seed * 31 + position + 1);
  return static_cast<TokenId>(mix(name ^ noise) % vocab_size);
}

// Of `next` after the text with this name, and of the k-th alternative.
float logprob_of(uint64_t name, TokenId next) {
  return -0.01F * static_cast<float>(mix(name + next) % 1000);
}

uint64_t start_of(bool long_rope) {
  return long_rope ? kStart + 1 : kStart;
}

bool same_plan(const StepPlan& a, const StepPlan& b) {
  const auto same_sample = [](const SampleRow& x, const SampleRow& y) {
    return x.row == y.row && x.slot == y.slot && x.position == y.position && x.logprobs == y.logprobs &&
           x.mask_stop_tokens == y.mask_stop_tokens && x.stop_tokens.data() == y.stop_tokens.data();
  };
  const auto same_copy = [](const PageCopy& x, const PageCopy& y) { return x.from == y.from && x.to == y.to; };
  const auto same_score = [](const PromptLogprobs& x, const PromptLogprobs& y) {
    return x.row == y.row && x.top == y.top && x.next.data() == y.next.data() && x.next.size() == y.next.size();
  };
  return a.tokens == b.tokens && a.from_sample == b.from_sample && a.positions == b.positions &&
         a.row_offsets == b.row_offsets && a.context_lens == b.context_lens && a.pages == b.pages &&
         a.page_offsets == b.page_offsets && std::ranges::equal(a.samples, b.samples, same_sample) &&
         a.long_rope == b.long_rope && std::ranges::equal(a.page_copies, b.page_copies, same_copy) &&
         std::ranges::equal(a.prompt_logprobs, b.prompt_logprobs, same_score);
}

}  // namespace

std::vector<TokenId> fake_answer(std::span<const TokenId> prompt, size_t count, const engine::SamplingParams& sampling,
                                 uint32_t vocab_size, uint32_t long_rope_from) {
  std::vector<TokenId> text(prompt.begin(), prompt.end());
  for (size_t i = 0; i < count; ++i) {
    uint64_t name = start_of(long_rope_from != 0 && text.size() > long_rope_from);
    for (const TokenId token : text) name = extend(name, token);
    text.push_back(choose(name, i, sampling, vocab_size));
  }
  return {text.begin() + static_cast<std::ptrdiff_t>(prompt.size()), text.end()};
}

std::vector<float> fake_prompt_logprobs(std::span<const TokenId> prompt, uint32_t long_rope_from) {
  std::vector<float> values;
  uint64_t name = start_of(long_rope_from != 0 && prompt.size() > long_rope_from);
  for (size_t i = 0; i + 1 < prompt.size(); ++i) {
    name = extend(name, prompt[i]);
    values.push_back(logprob_of(name, prompt[i + 1]));
  }
  return values;
}

FakeExecutor::FakeExecutor(const FakeExecutorOptions& options)
    : options_(options),
      pool_(size_t{options.limits.num_pages} * options.limits.tokens_per_block),
      slots_(options.limits.max_batch_size) {}

Result<void> FakeExecutor::enqueue(const StepPlan& plan) {
  if (queue_.size() >= options_.pipeline_depth) return internal_error("more plans than the pipeline is deep");
  if (auto shape = check_plan(plan, options_.limits, options_.vocab_size, samples_enqueued_last_, options_.window);
      !shape) {
    return shape;
  }
  if (auto copies = check_copies(plan); !copies) return copies;
  if (auto positions = check_positions(plan); !positions) return positions;
  if (auto writes = check_writes(plan); !writes) return writes;
  for (const SlotStart& start : plan.slot_starts) {
    if (start.prompt.empty()) return internal_error("a slot starts without a prompt");
  }
  Pending& pending = queue_.emplace_back(Pending{&plan, plan, {}});
  // Prompts and answers are promised to be there now, not later: their lengths are all this executor needs.
  for (const SlotStart& start : plan.slot_starts)
    pending.starts.push_back({start.slot, start.sampling, start.generated.size()});
  samples_enqueued_last_ = plan.samples.size();
  return {};
}

// What check_plan() leaves open: rows are consecutive positions at the end of their context.
Result<void> FakeExecutor::check_positions(const StepPlan& plan) {
  for (size_t row = 0; row < plan.num_rows(); ++row) {
    const uint32_t end = plan.row_offsets[row + 1];
    for (uint32_t t = plan.row_offsets[row]; t < end; ++t) {
      const auto expected = plan.context_lens[row] - static_cast<int32_t>(end - t);
      if (plan.positions[t] != expected)
        return internal_error(fmt::format("row {}: position {}, not {}", row, plan.positions[t], expected));
    }
  }
  return {};
}

// A page that a row writes to may be in no other row's table.
Result<void> FakeExecutor::check_writes(const StepPlan& plan) const {
  std::map<PageId, int> users;
  for (const PageId page : plan.pages) ++users[page];
  std::set<SlotId> slots;
  for (const SampleRow& sample : plan.samples) {
    if (!slots.insert(sample.slot).second) return internal_error(fmt::format("slot {} samples twice", sample.slot));
  }
  for (size_t row = 0; row < plan.num_rows(); ++row) {
    for (uint32_t t = plan.row_offsets[row]; t < plan.row_offsets[row + 1]; ++t) {
      const auto block = static_cast<uint32_t>(plan.positions[t]) / options_.limits.tokens_per_block;
      const PageId page = plan.pages[plan.page_offsets[row] + block];
      if (users[page] != 1) return internal_error(fmt::format("row {} writes to page {}, which is shared", row, page));
    }
  }
  return {};
}

Result<void> FakeExecutor::check_copies(const StepPlan& plan) {
  std::set<PageId> written;
  for (const PageCopy& copy : plan.page_copies) {
    if (!written.insert(copy.to).second) return internal_error(fmt::format("page {} is copied to twice", copy.to));
  }
  for (const PageCopy& copy : plan.page_copies) {
    if (written.contains(copy.from)) return internal_error(fmt::format("page {} is copied to and from", copy.from));
  }
  return {};
}

void FakeExecutor::copy_pages(const StepPlan& plan) {
  const uint32_t block = options_.limits.tokens_per_block;
  for (const PageCopy& copy : plan.page_copies) {
    std::copy_n(pool_.begin() + static_cast<std::ptrdiff_t>(copy.from) * block, block,
                pool_.begin() + static_cast<std::ptrdiff_t>(copy.to) * block);
  }
}

FakeExecutor::Entry& FakeExecutor::entry(const StepPlan& plan, size_t row, size_t position) {
  const uint32_t block = options_.limits.tokens_per_block;
  const auto page = static_cast<size_t>(plan.pages[plan.page_offsets[row] + position / block]);
  return pool_[page * block + position % block];
}

Result<void> FakeExecutor::run_row(const StepPlan& plan, size_t row) {
  const uint32_t first = plan.row_offsets[row];
  const auto begin = static_cast<size_t>(plan.positions[first]);
  const bool long_rope = !plan.long_rope.empty() && plan.long_rope[row] != 0;
  if (options_.long_rope_from != 0 && !long_rope &&
      static_cast<uint32_t>(plan.context_lens[row]) > options_.long_rope_from) {
    return internal_error(fmt::format("row {}: a context of {} with short rope", row, plan.context_lens[row]));
  }
  uint64_t name = start_of(long_rope);
  bool known = true;  // `name` is that of the text up to `position`
  for (size_t position = 0; position < begin; ++position) {
    if (plan.pages[plan.page_offsets[row] + position / options_.limits.tokens_per_block] == kNoPage) {
      known = false;
      continue;
    }
    const Entry& seen = entry(plan, row, position);
    const bool follows = !known || seen.name == extend(name, seen.token);
    known = true;
    if (seen.name == 0 || seen.position != static_cast<int32_t>(position) || !follows) {
      return internal_error(fmt::format("row {}: the KV of position {} is not of this sequence", row, position));
    }
    name = seen.name;
  }
  for (uint32_t t = first; t < plan.row_offsets[row + 1]; ++t) {
    TokenId token = plan.tokens[t];
    if (token == kTokenOfPreviousStep) {
      token = previous_samples_[plan.from_sample[t]];
    }
    name = extend(name, token);
    entry(plan, row, static_cast<size_t>(plan.positions[t])) = {name, plan.positions[t], token};
    row_last_[row] = token;
    names_[t] = name;
  }
  return {};
}

void FakeExecutor::score(const StepPlan& plan, StepResult& result) const {
  result.prompt_logprobs.clear();
  result.prompt_top.clear();
  for (const PromptLogprobs& wanted : plan.prompt_logprobs) {
    for (size_t i = 0; i < wanted.next.size(); ++i) {
      const uint64_t name = names_[plan.row_offsets[wanted.row] + i];
      result.prompt_logprobs.push_back(logprob_of(name, wanted.next[i]));
      for (uint32_t k = 0; k < wanted.top; ++k) {
        result.prompt_top.push_back({.id = k, .logprob = logprob_of(name, k), .rank = k + 1});
      }
    }
  }
}

Result<void> FakeExecutor::sample(const StepPlan& plan, const SampleRow& row, StepResult& result) {
  if (!slots_[row.slot].started) return internal_error("a slot that was not started");
  Slot& slot = slots_[row.slot];
  if (row.position != slot.next_position) {
    return internal_error(
        fmt::format("slot {}: sampling position {} after {}", row.slot, row.position, slot.next_position));
  }
  ++slot.next_position;
  TokenId token = choose(names_[plan.row_offsets[row.row + 1] - 1], row.position, slot.sampling, options_.vocab_size);
  if (row.mask_stop_tokens) {
    while (std::ranges::count(row.stop_tokens, token) > 0) token = (token + 1) % options_.vocab_size;
  }
  result.tokens.push_back(token);
  result.logprobs.push_back(-0.5F);
  for (int32_t k = 0; k < row.logprobs; ++k) {
    const auto id = static_cast<TokenId>((token + static_cast<uint32_t>(k)) % options_.vocab_size);
    result.top.push_back({.id = id, .logprob = -0.5F - static_cast<float>(k), .rank = static_cast<uint32_t>(k) + 1});
  }
  result.top_offsets.push_back(static_cast<uint32_t>(result.top.size()));
  result.not_finite.push_back(options_.not_finite_on_token == row_last_[row.row] ? 1 : 0);
  return {};
}

Result<void> FakeExecutor::collect(StepResult& result) {
  if (queue_.empty()) return internal_error("nothing was enqueued");
  const Pending pending = std::move(queue_.front());
  queue_.pop_front();
  const StepPlan& plan = *pending.plan;
  if (!same_plan(plan, pending.copy)) return internal_error("the plan was changed before it was collected");
  if (options_.fail_after_steps && ++steps_ > *options_.fail_after_steps) return internal_error("told to fail");
  for (const Start& start : pending.starts) slots_[start.slot] = {true, start.sampling, start.generated};
  copy_pages(plan);
  names_.assign(plan.num_tokens(), 0);
  row_last_.assign(plan.num_rows(), 0);
  for (size_t row = 0; row < plan.num_rows(); ++row) {
    if (auto ran = run_row(plan, row); !ran) return ran;
  }
  result.tokens.clear();
  result.logprobs.clear();
  result.top.clear();
  result.top_offsets.assign(1, 0);
  result.not_finite.clear();
  for (const SampleRow& row : plan.samples) {
    if (auto sampled = sample(plan, row, result); !sampled) return sampled;
  }
  score(plan, result);
  previous_samples_ = result.tokens;
  return {};
}

}  // namespace dyn::native
