// Help for tests and benchmarks: runs sequences through an Executor without a scheduler.
//
//   StepDriver driver(*executor);
//   StepDriver::Sequence& a = driver.add({.prompt = {1, 2, 3}});
//   driver.step({{&a, 2}});        // a chunk of two prompt tokens
//   driver.step({{&a, 1}});        // the third: the first token is sampled
//   driver.step({{&a, 1}});        // a decode row
//   a.generated; a.top;
//
// Pages are handed out in a scattered order, so that nobody can rely on neighbours. Sequences live as long as the
// driver; each has a slot of its own. Throws on an error of the executor. Thread rules: the executor's thread.
#pragma once

#include <algorithm>
#include <deque>
#include <stdexcept>
#include <utility>
#include <vector>

#include "native/exec/executor.h"

namespace dyn::native {

class StepDriver {
 public:
  struct Options {
    std::vector<TokenId> prompt;
    engine::SamplingParams sampling{.temperature = 0.0F};
    int32_t logprobs = -1;
    bool long_rope = false;
    int32_t prompt_logprobs = -1;  // -1: none; k: of each prompt token but the first, and the k best
  };

  struct Sequence {
    std::vector<TokenId> tokens;  // prompt and answer
    size_t prompt_size = 0;
    size_t computed = 0;  // tokens whose KV is in the pool
    std::vector<PageId> pages;
    SlotId slot = 0;
    bool started = false;
    Options options;
    std::vector<TokenId> generated;
    std::vector<float> logprobs;
    std::vector<std::vector<engine::TopLogprob>> top;
    bool not_finite = false;
    std::vector<float> prompt_logprobs;  // from the second prompt token on
    std::vector<engine::TopLogprob> prompt_top;

    // Tokens not computed yet: the rest of the prompt, or the last sampled one.
    [[nodiscard]] size_t left() const { return tokens.size() - computed; }
  };

  explicit StepDriver(Executor& executor) : executor_(executor) {
    const uint32_t pages = executor.limits().num_pages;
    // 7 steps through all pages, whatever their number: no two neighbours follow each other.
    for (uint32_t offset = 0; offset < 7; ++offset) {
      for (uint32_t page = offset; page < pages; page += 7) free_.push_back(static_cast<PageId>(page));
    }
  }

  Sequence& add(Options options) {
    Sequence& s = sequences_.emplace_back();
    s.tokens = options.prompt;
    s.prompt_size = options.prompt.size();
    s.slot = static_cast<SlotId>(sequences_.size() - 1);
    s.options = std::move(options);
    return s;
  }

  // Gives a finished sequence's pages back.
  void release(Sequence& s) {
    std::erase(s.pages, kNoPage);
    free_.insert(free_.end(), s.pages.begin(), s.pages.end());
    s.pages.clear();
    s.computed = 0;
  }

  // Gives back the pages that the next token of a model with this window does not look at.
  void drop_before_window(Sequence& s, uint32_t window) {
    const size_t per_block = executor_.limits().tokens_per_block;
    for (size_t i = 0; (i + 1) * per_block + window <= s.computed + 1; ++i) {
      if (s.pages[i] != kNoPage) free_.push_back(std::exchange(s.pages[i], kNoPage));
    }
  }

  // One step: `count` tokens of each sequence. A sequence that has no token left afterwards is sampled.
  void step(const std::vector<std::pair<Sequence*, size_t>>& rows) {
    plan_.clear();
    plan_.row_offsets.push_back(0);
    plan_.page_offsets.push_back(0);
    std::vector<Sequence*> sampled;
    std::vector<Sequence*> scored;
    for (const auto& [s, count] : rows) {
      if (!s->started)
        plan_.slot_starts.push_back({.slot = s->slot, .sampling = s->options.sampling, .prompt = s->tokens});
      s->started = true;
      if (s->options.prompt_logprobs >= 0 && s->computed + 1 < s->prompt_size) {
        plan_.prompt_logprobs.push_back(
            {.row = static_cast<uint32_t>(plan_.row_offsets.size() - 1),
             .top = static_cast<uint32_t>(s->options.prompt_logprobs),
             .next = std::span(s->options.prompt)
                         .subspan(s->computed + 1, std::min(count, s->prompt_size - 1 - s->computed))});
        scored.push_back(s);
      }
      for (size_t i = 0; i < count; ++i) {
        plan_.tokens.push_back(s->tokens.at(s->computed));
        plan_.positions.push_back(static_cast<int32_t>(s->computed++));
      }
      const size_t pages =
          (s->computed + executor_.limits().tokens_per_block - 1) / executor_.limits().tokens_per_block;
      while (s->pages.size() < pages) {
        if (free_.empty()) throw std::runtime_error("no page left");
        s->pages.push_back(free_.back());
        free_.pop_back();
      }
      plan_.row_offsets.push_back(static_cast<uint32_t>(plan_.tokens.size()));
      plan_.long_rope.push_back(s->options.long_rope ? 1 : 0);
      plan_.context_lens.push_back(static_cast<int32_t>(s->computed));
      plan_.pages.insert(plan_.pages.end(), s->pages.begin(), s->pages.end());
      plan_.page_offsets.push_back(static_cast<uint32_t>(plan_.pages.size()));
      if (s->left() == 0) {
        plan_.samples.push_back({.row = static_cast<uint32_t>(plan_.row_offsets.size() - 2),
                                 .slot = s->slot,
                                 .position = s->generated.size(),
                                 .logprobs = s->options.logprobs});
        sampled.push_back(s);
      }
    }
    check(executor_.enqueue(plan_));
    check(executor_.collect(result_));
    for (size_t i = 0; i < sampled.size(); ++i) {
      Sequence& s = *sampled[i];
      s.tokens.push_back(result_.tokens[i]);
      s.generated.push_back(result_.tokens[i]);
      s.logprobs.push_back(result_.logprobs[i]);
      s.top.emplace_back(result_.top.begin() + result_.top_offsets[i],
                         result_.top.begin() + result_.top_offsets[i + 1]);
      s.not_finite |= result_.not_finite[i] != 0;
    }
    auto value = result_.prompt_logprobs.begin();
    auto top = result_.prompt_top.begin();
    for (size_t q = 0; q < scored.size(); ++q) {
      const auto values = static_cast<std::ptrdiff_t>(plan_.prompt_logprobs[q].next.size());
      const auto tops = values * scored[q]->options.prompt_logprobs;
      scored[q]->prompt_logprobs.insert(scored[q]->prompt_logprobs.end(), value, value + values);
      scored[q]->prompt_top.insert(scored[q]->prompt_top.end(), top, top + tops);
      value += values;
      top += tops;
    }
  }

  // Alone: the prompt in chunks of at most `chunk` tokens, then one token a step.
  void generate(Sequence& s, size_t count, size_t chunk = SIZE_MAX) {
    while (s.generated.size() < count) step({{&s, std::min(s.left(), chunk)}});
  }

  [[nodiscard]] const StepPlan& plan() const { return plan_; }

 private:
  static void check(const Result<void>& result) {
    if (!result) throw std::runtime_error(result.error().message);
  }

  Executor& executor_;
  std::vector<PageId> free_;
  std::deque<Sequence> sequences_;
  StepPlan plan_;
  StepResult result_;
};

}  // namespace dyn::native
