#include "native/testing/fake_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

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

bool same_plan(const StepPlan& a, const StepPlan& b) {
  const auto same_sample = [](const SampleRow& x, const SampleRow& y) {
    return x.row == y.row && x.slot == y.slot && x.position == y.position && x.logprobs == y.logprobs &&
           x.mask_stop_tokens == y.mask_stop_tokens && x.stop_tokens.data() == y.stop_tokens.data();
  };
  return a.tokens == b.tokens && a.from_sample == b.from_sample && a.positions == b.positions &&
         a.row_offsets == b.row_offsets && a.context_lens == b.context_lens && a.pages == b.pages &&
         a.page_offsets == b.page_offsets && std::ranges::equal(a.samples, b.samples, same_sample);
}

}  // namespace

std::vector<TokenId> fake_answer(std::span<const TokenId> prompt, size_t count, const engine::SamplingParams& sampling,
                                 uint32_t vocab_size) {
  uint64_t name = kStart;
  for (const TokenId token : prompt) name = extend(name, token);
  std::vector<TokenId> answer;
  for (size_t i = 0; i < count; ++i) {
    answer.push_back(choose(name, i, sampling, vocab_size));
    name = extend(name, answer.back());
  }
  return answer;
}

FakeExecutor::FakeExecutor(const FakeExecutorOptions& options)
    : options_(options),
      pool_(size_t{options.limits.num_pages} * options.limits.tokens_per_block),
      slots_(options.limits.max_batch_size) {}

Result<void> FakeExecutor::enqueue(const StepPlan& plan) {
  if (queue_.size() >= options_.pipeline_depth) return internal_error("more plans than the pipeline is deep");
  if (auto shape = check_shape(plan); !shape) return shape;
  if (auto writes = check_writes(plan); !writes) return writes;
  for (const SlotStart& start : plan.slot_starts) {
    if (start.slot >= slots_.size()) return internal_error("a slot that does not exist");
    if (start.prompt.empty()) return internal_error("a slot starts without a prompt");
  }
  Pending& pending = queue_.emplace_back(Pending{&plan, plan, {}});
  // Prompts and answers are promised to be there now, not later: their lengths are all this executor needs.
  for (const SlotStart& start : plan.slot_starts)
    pending.starts.push_back({start.slot, start.sampling, start.generated.size()});
  return {};
}

Result<void> FakeExecutor::check_shape(const StepPlan& plan) const {
  const ExecutorLimits& limits = options_.limits;
  const size_t rows = plan.num_rows();
  if (rows == 0 || rows > limits.max_batch_size) return internal_error(fmt::format("{} rows", rows));
  if (plan.num_tokens() > limits.max_num_tokens) return internal_error(fmt::format("{} tokens", plan.num_tokens()));
  if (plan.positions.size() != plan.num_tokens() || plan.context_lens.size() != rows ||
      plan.page_offsets.size() != rows + 1 || plan.row_offsets.back() != plan.num_tokens() ||
      plan.page_offsets.back() != plan.pages.size() || plan.samples.size() > rows ||
      (!plan.from_sample.empty() && plan.from_sample.size() != plan.num_tokens())) {
    return internal_error("the plan's arrays do not fit each other");
  }
  for (size_t row = 0; row < rows; ++row) {
    const uint32_t tokens = plan.row_offsets[row + 1] - plan.row_offsets[row];
    const auto context = static_cast<uint32_t>(plan.context_lens[row]);
    if (tokens == 0 || context < tokens) return internal_error(fmt::format("row {} is empty", row));
    const uint32_t pages = plan.page_offsets[row + 1] - plan.page_offsets[row];
    if (pages != (context + limits.tokens_per_block - 1) / limits.tokens_per_block) {
      return internal_error(fmt::format("row {} has {} pages for {} positions", row, pages, context));
    }
    for (uint32_t i = 0; i < tokens; ++i) {
      const auto position = static_cast<uint32_t>(plan.positions[plan.row_offsets[row] + i]);
      if (position != context - tokens + i) return internal_error(fmt::format("row {}: position {}", row, position));
    }
  }
  for (const PageId page : plan.pages) {
    if (page < 0 || static_cast<uint32_t>(page) >= limits.num_pages) return internal_error("a page outside the pool");
  }
  for (size_t i = 0; i < plan.samples.size(); ++i) {
    if (plan.samples[i].row >= rows || (i > 0 && plan.samples[i].row <= plan.samples[i - 1].row)) {
      return internal_error("sampling rows are out of order");
    }
  }
  return {};
}

// A page that a row writes to may be in no other row's table.
Result<void> FakeExecutor::check_writes(const StepPlan& plan) const {
  std::map<PageId, int> users;
  for (const PageId page : plan.pages) ++users[page];
  for (size_t row = 0; row < plan.num_rows(); ++row) {
    for (uint32_t t = plan.row_offsets[row]; t < plan.row_offsets[row + 1]; ++t) {
      const auto block = static_cast<uint32_t>(plan.positions[t]) / options_.limits.tokens_per_block;
      const PageId page = plan.pages[plan.page_offsets[row] + block];
      if (users[page] != 1) return internal_error(fmt::format("row {} writes to page {}, which is shared", row, page));
    }
  }
  return {};
}

FakeExecutor::Entry& FakeExecutor::entry(const StepPlan& plan, size_t row, size_t position) {
  const uint32_t block = options_.limits.tokens_per_block;
  const auto page = static_cast<size_t>(plan.pages[plan.page_offsets[row] + position / block]);
  return pool_[page * block + position % block];
}

Result<void> FakeExecutor::run_row(const StepPlan& plan, size_t row) {
  const uint32_t first = plan.row_offsets[row];
  const auto begin = static_cast<size_t>(plan.positions[first]);
  uint64_t name = kStart;
  for (size_t position = 0; position < begin; ++position) {
    const Entry& seen = entry(plan, row, position);
    if (seen.name == 0 || seen.position != static_cast<int32_t>(position) || seen.name != extend(name, seen.token)) {
      return internal_error(fmt::format("row {}: the KV of position {} is not of this sequence", row, position));
    }
    name = seen.name;
  }
  for (uint32_t t = first; t < plan.row_offsets[row + 1]; ++t) {
    TokenId token = plan.tokens[t];
    if (token == kTokenOfPreviousStep) {
      if (plan.from_sample.empty() || plan.from_sample[t] >= previous_samples_.size()) {
        return internal_error(fmt::format("row {}: a token of a sampling row that does not exist", row));
      }
      token = previous_samples_[plan.from_sample[t]];
    }
    if (token >= options_.vocab_size) return internal_error(fmt::format("row {}: token {}", row, token));
    name = extend(name, token);
    entry(plan, row, static_cast<size_t>(plan.positions[t])) = {name, plan.positions[t], token};
    row_last_[row] = token;
  }
  row_names_[row] = name;
  return {};
}

Result<void> FakeExecutor::sample(const SampleRow& row, StepResult& result) {
  if (row.slot >= slots_.size() || !slots_[row.slot].started) return internal_error("a slot that was not started");
  Slot& slot = slots_[row.slot];
  if (row.position != slot.next_position) {
    return internal_error(
        fmt::format("slot {}: sampling position {} after {}", row.slot, row.position, slot.next_position));
  }
  ++slot.next_position;
  TokenId token = choose(row_names_[row.row], row.position, slot.sampling, options_.vocab_size);
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
  row_names_.assign(plan.num_rows(), 0);
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
    if (auto sampled = sample(row, result); !sampled) return sampled;
  }
  previous_samples_ = result.tokens;
  return {};
}

}  // namespace dyn::native
