#include "engine/mock_engine.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "engine/stepped_engine.h"

namespace dyn::engine {
namespace {

using Clock = std::chrono::steady_clock;

// The finaliser of splitmix64: every bit of the input reaches every bit of the output.
uint64_t mix(uint64_t x) {
  x += 0x9E37'79B9'7F4A'7C15;
  x = (x ^ (x >> 30)) * 0xBF58'476D'1CE4'E5B9;
  x = (x ^ (x >> 27)) * 0x94D0'49BB'1331'11EB;
  return x ^ (x >> 31);
}

uint64_t hash_prompt(std::span<const TokenId> prompt) {
  uint64_t hash = prompt.size();
  for (const TokenId token : prompt) hash = mix(hash ^ token);
  return hash;
}

TokenId token_of_hash(uint64_t prompt_hash, uint32_t index, uint32_t vocab_size) {
  const uint32_t spared = vocab_size > 16 ? 3 : 0;
  return static_cast<TokenId>(spared + mix(prompt_hash ^ index) % (vocab_size - spared));
}

uint64_t blocks_for(uint64_t tokens, uint32_t block_size) {
  return (tokens + block_size - 1) / block_size;
}

struct Sequence {
  Request request;
  uint64_t prompt_hash = 0;
  uint32_t generated = 0;  // stop tokens that are left out included
  uint64_t reserved_blocks = 0;
};

class MockStepper final : public Stepper {
 public:
  explicit MockStepper(const MockOptions& options)
      : options_(options),
        step_time_(std::chrono::duration_cast<Clock::duration>(
            std::chrono::duration<double, std::milli>(std::max(0.0, options.step_ms)))),
        bad_prompt_{Code::kInternal, "mock fault: the prompt holds the token that is an error"} {
    const uint64_t capacity = options_.total_kv_blocks * options_.kv_block_size;
    options_.max_seq_len = static_cast<uint32_t>(std::min<uint64_t>(options_.max_seq_len, capacity));
    stats_.kv_blocks_total = options_.total_kv_blocks;
    running_.reserve(options_.max_batch_size);
    outputs_.reserve(options_.max_batch_size);
    tokens_.reserve(options_.max_batch_size);
    logprobs_.reserve(options_.max_batch_size);
  }

  [[nodiscard]] Caps caps() const override {
    return {.name = "mock",
            .vocab_size = options_.vocab_size,
            .kv_block_size = options_.kv_block_size,
            .total_kv_blocks = options_.total_kv_blocks,
            .max_seq_len = options_.max_seq_len,
            .max_batch_size = options_.max_batch_size,
            .max_num_tokens = std::max(options_.max_seq_len, options_.max_batch_size),
            .max_logprobs = options_.max_logprobs,
            .penalties = true,
            .min_p = true};
  }

  void submit(Request request) override {
    auto sequence = std::make_unique<Sequence>();
    sequence->prompt_hash = hash_prompt(request.token_ids);
    sequence->reserved_blocks = blocks_for(request.token_ids.size() + request.max_tokens, options_.kv_block_size);
    sequence->request = std::move(request);
    // Higher priority first, first come first served within one.
    const auto after =
        std::upper_bound(waiting_.begin(), waiting_.end(), sequence->request.priority,
                         [](int32_t priority, const auto& other) { return priority > other->request.priority; });
    waiting_.insert(after, std::move(sequence));
  }

  void abort(RequestId id) override {
    if (stalled()) return;
    const auto is_it = [id](const auto& sequence) { return sequence->request.id == id; };
    if (const auto at = std::find_if(running_.begin(), running_.end(), is_it); at != running_.end()) {
      release(**at);
      running_.erase(at);
    } else if (const auto queued = std::find_if(waiting_.begin(), waiting_.end(), is_it); queued != waiting_.end()) {
      waiting_.erase(queued);
    } else {
      return;
    }
    ++stats_.requests_aborted;
  }

  Result<Turn> turn(StepOutput& out) override {
    if (stalled()) return Turn{.idle = true};
    if (!in_step_) {
      admit();
      if (running_.empty()) return Turn{.idle = true};
      // Steps follow each other on a fixed beat; after a pause, or when a whole step late, the beat starts anew.
      const auto now = Clock::now();
      step_ends_ = (now - step_ends_ < step_time_ ? step_ends_ : now) + step_time_;
      in_step_ = true;
    }
    if (running_.empty()) {  // all aborted meanwhile
      in_step_ = false;
      return Turn{};
    }
    if (Clock::now() < step_ends_) return Turn{.not_before = step_ends_};
    in_step_ = false;
    ++stats_.steps;
    if (options_.die_after_steps && stats_.steps > *options_.die_after_steps) {
      return Error{Code::kEngineDead, "mock fault: the engine died as it was told to"};
    }
    step();
    out.step = stats_.steps;
    out.requests = outputs_;
    out.kv_events = {};
    out.stats = stats();
    return Turn{.has_output = true};
  }

  [[nodiscard]] size_t alive() const override { return running_.size() + waiting_.size(); }

  [[nodiscard]] Stats stats() const override {
    Stats stats = stats_;
    stats.running = static_cast<uint32_t>(running_.size());
    stats.waiting = static_cast<uint32_t>(waiting_.size());
    for (const auto& sequence : running_) stats.kv_blocks_used += blocks_held(*sequence);
    return stats;
  }

 private:
  [[nodiscard]] bool stalled() const {
    return options_.stall_after_steps && stats_.steps >= *options_.stall_after_steps;
  }

  [[nodiscard]] uint64_t blocks_held(const Sequence& sequence) const {
    return blocks_for(sequence.request.token_ids.size() + sequence.generated, options_.kv_block_size);
  }

  void admit() {
    while (!waiting_.empty() && running_.size() < options_.max_batch_size &&
           reserved_blocks_ + waiting_.front()->reserved_blocks <= options_.total_kv_blocks) {
      reserved_blocks_ += waiting_.front()->reserved_blocks;
      stats_.prompt_tokens += waiting_.front()->request.token_ids.size();
      running_.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
    }
  }

  void release(const Sequence& sequence) { reserved_blocks_ -= sequence.reserved_blocks; }

  void step() {
    outputs_.clear();
    tokens_.clear();
    logprobs_.clear();
    top_.clear();
    size_t top_total = 0;
    for (const auto& sequence : running_) top_total += sequence->request.logprobs.value_or(0);
    top_.reserve(top_total);  // spans into it are handed out: it must not move while it grows
    for (auto& sequence : running_) outputs_.push_back(advance(*sequence));
    for (size_t i = 0; i < running_.size(); ++i) {
      if (outputs_[i].finish == FinishReason::kNone) continue;
      release(*running_[i]);
      ++stats_.requests_finished;
      running_[i].reset();
    }
    std::erase(running_, nullptr);
  }

  RequestOutput advance(Sequence& sequence) {
    const Request& request = sequence.request;
    RequestOutput output{.id = request.id};
    if (options_.error_on_token && std::ranges::count(request.token_ids, *options_.error_on_token) > 0) {
      output.finish = FinishReason::kError;
      output.error = &bad_prompt_;
    } else {
      generate(sequence, output);
    }
    output.prompt_tokens = static_cast<uint32_t>(request.token_ids.size());
    output.completion_tokens = sequence.generated;
    return output;
  }

  void generate(Sequence& sequence, RequestOutput& output) {
    const Request& request = sequence.request;
    TokenId token = next_token(sequence);
    const auto stops = [&](TokenId id) {
      return is_in(id, request.stop_token_ids) || is_in(id, request.visible_stop_token_ids);
    };
    if (sequence.generated < request.min_tokens) {
      // A real engine masks the stop tokens; any other token will do here. A vocabulary of stop tokens only cannot.
      for (uint32_t tries = 0; stops(token) && tries < options_.vocab_size; ++tries) {
        token = (token + 1) % options_.vocab_size;
      }
    } else if (is_in(token, request.stop_token_ids)) {
      output.finish = FinishReason::kStop;
      output.stop_token = token;
      return;
    } else if (is_in(token, request.visible_stop_token_ids)) {
      output.finish = FinishReason::kStop;
      output.stop_token = token;
    }
    ++sequence.generated;
    ++stats_.tokens_generated;
    if (output.finish == FinishReason::kNone && sequence.generated == request.max_tokens) {
      output.finish = FinishReason::kLength;
    }
    tokens_.push_back(token);
    output.tokens = {&tokens_.back(), 1};
    if (request.logprobs) add_logprobs(token, *request.logprobs, output);
  }

  // The chosen token is always the most likely one, its neighbours follow.
  void add_logprobs(TokenId token, uint32_t width, RequestOutput& output) {
    logprobs_.push_back(-0.25F);
    output.logprobs = {&logprobs_.back(), 1};
    output.top_width = std::min(width, options_.vocab_size);
    const size_t begin = top_.size();
    for (uint32_t i = 0; i < output.top_width; ++i) {
      const auto id = static_cast<TokenId>((uint64_t{token} + i) % options_.vocab_size);
      top_.push_back({.id = id, .logprob = -0.25F - static_cast<float>(i), .rank = i + 1});
    }
    output.top = {top_.data() + begin, output.top_width};
  }

  [[nodiscard]] TokenId next_token(const Sequence& sequence) const {
    switch (options_.tokens) {
      case MockTokens::kEcho:
        return sequence.request.token_ids[sequence.generated % sequence.request.token_ids.size()];
      case MockTokens::kTimestamp: {
        const auto since =
            std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - options_.timestamp_base);
        return static_cast<TokenId>(static_cast<uint64_t>(since.count()) % options_.vocab_size);
      }
      case MockTokens::kHash:
        break;
    }
    return token_of_hash(sequence.prompt_hash, sequence.generated, options_.vocab_size);
  }

  static bool is_in(TokenId token, const std::vector<TokenId>& list) {
    return std::find(list.begin(), list.end(), token) != list.end();
  }

  MockOptions options_;
  const Clock::duration step_time_;
  const Error bad_prompt_;

  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  uint64_t reserved_blocks_ = 0;
  bool in_step_ = false;
  Clock::time_point step_ends_;
  Stats stats_;

  // Of the step handed out last.
  std::vector<RequestOutput> outputs_;
  std::vector<TokenId> tokens_;
  std::vector<float> logprobs_;
  std::vector<TopLogprob> top_;
};

}  // namespace

TokenId mock_token(std::span<const TokenId> prompt, uint32_t index, uint32_t vocab_size) {
  return token_of_hash(hash_prompt(prompt), index, vocab_size);
}

std::unique_ptr<Stepper> make_mock_stepper(const MockOptions& options) {
  return std::make_unique<MockStepper>(options);
}

std::unique_ptr<Engine> make_mock_engine(const MockOptions& options) {
  return std::make_unique<SteppedEngine>(
      make_mock_stepper(options),
      SteppedEngineOptions{.max_queue_size = options.max_queue_size, .thread_name = "mock engine"});
}

}  // namespace dyn::engine
