// StepBatch: the outputs of one engine step for one net loop, copied out of the engine's buffers into flat arrays that
// are reused, and StepRing: the queue of them between the engine thread and the loop.
//
// Thread rules: a batch belongs to one side at a time. StepRing: take_empty() and push() on the engine thread, pop()
// and give_back() on the loop.
#pragma once

#include <readerwriterqueue/readerwriterqueue.h>

#include <memory>
#include <vector>

#include "engine/engine.h"

namespace dyn::worker {

struct StepBatch {
  struct Entry {
    engine::RequestId id;
    uint32_t tokens_begin;
    uint32_t tokens_end;
    uint32_t logprobs_begin;
    uint32_t logprobs_end;
    uint32_t top_begin;
    uint32_t top_end;
    uint32_t top_width;
    uint32_t prompt_begin;  // into prompt_logprobs
    uint32_t prompt_end;
    uint32_t prompt_top_width;
    uint32_t choice;
    bool more_choices;
    engine::FinishReason finish;
    std::optional<llm::TokenId> stop_token;
    uint32_t error;  // index into errors, with finish == kError
    uint32_t prompt_tokens;
    uint32_t completion_tokens;
    uint32_t cached_tokens;
  };

  std::vector<Entry> entries;
  std::vector<llm::TokenId> tokens;
  std::vector<float> logprobs;
  std::vector<engine::TopLogprob> top;
  std::vector<engine::TopLogprob> prompt_logprobs;
  std::vector<Error> errors;

  void add(const engine::RequestOutput& output) {
    Entry entry{};
    entry.id = output.id;
    entry.tokens_begin = size32(tokens);
    tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
    entry.tokens_end = size32(tokens);
    entry.logprobs_begin = size32(logprobs);
    logprobs.insert(logprobs.end(), output.logprobs.begin(), output.logprobs.end());
    entry.logprobs_end = size32(logprobs);
    entry.top_begin = size32(top);
    top.insert(top.end(), output.top.begin(), output.top.end());
    entry.top_end = size32(top);
    entry.top_width = output.top_width;
    entry.prompt_begin = size32(prompt_logprobs);
    prompt_logprobs.insert(prompt_logprobs.end(), output.prompt_logprobs.begin(), output.prompt_logprobs.end());
    entry.prompt_end = size32(prompt_logprobs);
    entry.prompt_top_width = output.prompt_top_width;
    entry.choice = output.choice;
    entry.more_choices = output.more_choices;
    entry.finish = output.finish;
    entry.stop_token = output.stop_token;
    if (output.finish == engine::FinishReason::kError) {
      entry.error = size32(errors);
      errors.push_back(output.error != nullptr ? *output.error : internal_error("the engine gave no reason"));
    }
    entry.prompt_tokens = output.prompt_tokens;
    entry.completion_tokens = output.completion_tokens;
    entry.cached_tokens = output.cached_tokens;
    entries.push_back(entry);
  }

  void clear() {
    entries.clear();
    tokens.clear();
    logprobs.clear();
    top.clear();
    prompt_logprobs.clear();
    errors.clear();
  }

 private:
  template <class T>
  static uint32_t size32(const std::vector<T>& v) {
    return static_cast<uint32_t>(v.size());
  }
};

class StepRing {
 public:
  // Engine thread. Batches come back through give_back(); a new one is made only when the loop lags.
  std::unique_ptr<StepBatch> take_empty() {
    std::unique_ptr<StepBatch> batch;
    if (!empty_.try_dequeue(batch)) batch = std::make_unique<StepBatch>();
    return batch;
  }
  void push(std::unique_ptr<StepBatch> batch) { full_.enqueue(std::move(batch)); }

  // Loop thread.
  bool pop(std::unique_ptr<StepBatch>& batch) { return full_.try_dequeue(batch); }
  [[nodiscard]] bool has_more() const { return full_.peek() != nullptr; }
  void give_back(std::unique_ptr<StepBatch> batch) {
    batch->clear();
    empty_.enqueue(std::move(batch));
  }

 private:
  moodycamel::ReaderWriterQueue<std::unique_ptr<StepBatch>> full_{16};
  moodycamel::ReaderWriterQueue<std::unique_ptr<StepBatch>> empty_{16};
};

}  // namespace dyn::worker
