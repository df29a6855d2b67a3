#include "engine/stepped_engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/log.h"
#include "base/threads.h"

namespace dyn::engine {
namespace {

Error out_of_vocabulary(std::string_view what, TokenId token, uint32_t vocab_size) {
  return invalid_argument(fmt::format("{} {} is not in the model's vocabulary of {} tokens", what, token, vocab_size));
}

Result<void> check_logits_options(SamplingParams& sampling, const Caps& caps) {
  if (!sampling.logit_bias.empty() && !caps.logit_bias) return unsupported("logit_bias: not supported by this engine");
  for (const auto& [token, bias] : sampling.logit_bias) {
    if (token >= caps.vocab_size) return out_of_vocabulary("logit_bias: token", token, caps.vocab_size);
    if (!(bias < std::numeric_limits<float>::infinity()))
      return invalid_argument(fmt::format("logit_bias: {} for token {} is no bias", bias, token));
  }
  // A sequence that cannot be generated need not be forbidden.
  std::erase_if(sampling.bad_words, [&](const std::vector<TokenId>& word) {
    return word.empty() || std::ranges::any_of(word, [&](TokenId token) { return token >= caps.vocab_size; });
  });
  if (!sampling.bad_words.empty() && !caps.bad_words) return unsupported("bad_words: not supported by this engine");
  return {};
}

}  // namespace

Result<void> normalize(Request& request, const Caps& caps) {
  if (request.token_ids.empty()) return invalid_argument("the prompt has no tokens");
  if (request.token_ids.size() >= caps.max_seq_len) {
    return invalid_argument(
        fmt::format("the prompt has {} tokens, and with at least one token of an answer the engine "
                    "takes at most {} (max_seq_len)",
                    request.token_ids.size(), caps.max_seq_len));
  }
  for (const TokenId token : request.token_ids) {
    if (token >= caps.vocab_size) return out_of_vocabulary("prompt token", token, caps.vocab_size);
  }
  if (request.max_tokens == 0) return invalid_argument("max_tokens must be at least 1");
  if (request.logprobs && *request.logprobs > caps.max_logprobs) {
    return invalid_argument(fmt::format("{} alternatives of logprobs were asked for, at most {} can be given",
                                        *request.logprobs, caps.max_logprobs));
  }
  if (request.num_choices == 0) return invalid_argument("n: a request has at least one choice");
  if (request.num_choices > 1 && !caps.multiple_choices)
    return unsupported("n: one choice a request is supported by this engine");
  if (request.prompt_logprobs && !caps.prompt_logprobs)
    return unsupported("prompt_logprobs: not supported by this engine");
  if (request.prompt_logprobs.value_or(0) > caps.max_logprobs) {
    return invalid_argument(fmt::format("prompt_logprobs: {} alternatives were asked for, at most {} can be given",
                                        *request.prompt_logprobs, caps.max_logprobs));
  }
  if (auto checked = check_logits_options(request.sampling, caps); !checked) return checked;
  const auto room = static_cast<uint32_t>(caps.max_seq_len - request.token_ids.size());
  request.max_tokens = std::min(request.max_tokens, room);
  const auto outside = [&](TokenId token) { return token >= caps.vocab_size; };
  std::erase_if(request.stop_token_ids, outside);
  std::erase_if(request.visible_stop_token_ids, outside);
  return {};
}

void SteppedEngine::PublishedStats::store(const Stats& stats) {
  const auto put = [](auto& to, auto value) { to.store(value, std::memory_order_relaxed); };
  put(steps, stats.steps);
  put(running, stats.running);
  put(waiting, stats.waiting);
  put(kv_blocks_used, stats.kv_blocks_used);
  put(kv_blocks_total, stats.kv_blocks_total);
  put(requests_finished, stats.requests_finished);
  put(requests_aborted, stats.requests_aborted);
  put(tokens_generated, stats.tokens_generated);
  put(prompt_tokens, stats.prompt_tokens);
  put(prompt_tokens_cached, stats.prompt_tokens_cached);
  put(preemptions, stats.preemptions);
  put(kv_block_hits, stats.kv_block_hits);
  put(kv_block_misses, stats.kv_block_misses);
  put(kv_block_evictions, stats.kv_block_evictions);
}

Stats SteppedEngine::PublishedStats::load() const {
  const auto get = [](const auto& from) { return from.load(std::memory_order_relaxed); };
  return {.steps = get(steps),
          .running = get(running),
          .waiting = get(waiting),
          .kv_blocks_used = get(kv_blocks_used),
          .kv_blocks_total = get(kv_blocks_total),
          .requests_finished = get(requests_finished),
          .requests_aborted = get(requests_aborted),
          .tokens_generated = get(tokens_generated),
          .prompt_tokens = get(prompt_tokens),
          .prompt_tokens_cached = get(prompt_tokens_cached),
          .preemptions = get(preemptions),
          .kv_block_hits = get(kv_block_hits),
          .kv_block_misses = get(kv_block_misses),
          .kv_block_evictions = get(kv_block_evictions)};
}

SteppedEngine::SteppedEngine(std::unique_ptr<Stepper> stepper, SteppedEngineOptions options)
    : stepper_(std::move(stepper)),
      options_(std::move(options)),
      caps_(stepper_->caps()),
      max_open_(uint64_t{caps_.max_batch_size} + options_.max_queue_size) {
  published_.store(stepper_->stats());
}

SteppedEngine::~SteppedEngine() {
  stop();
}

Result<void> SteppedEngine::start(Observer& observer) {
  if (observer_ != nullptr) return internal_error("the engine was started before");
  observer_ = &observer;
  if (auto prepared = stepper_->prepare(); !prepared) {
    health_.store(Health::kDead);
    return prepared.error().with_context("starting the engine");
  }
  published_.store(stepper_->stats());
  health_.store(Health::kReady);
  thread_ = std::thread([this] { run(); });
  return {};
}

Result<void> SteppedEngine::submit(Request request) {
  if (auto checked = normalize(request, caps_); !checked) return checked.error();
  // Counted before the look at health_: drain() sets health_ first and counts afterwards, so one of both sees the
  // other.
  undelivered_.fetch_add(1);
  const auto refuse = [this](Error error) {
    finished(1);
    return error;
  };
  switch (health_.load()) {
    case Health::kReady:
      break;
    case Health::kStarting:
      return refuse({Code::kUnavailable, "the engine has not been started"});
    case Health::kDraining:
      return refuse({Code::kUnavailable, "the engine is shutting down"});
    case Health::kDead:
      return refuse({Code::kEngineDead, "the engine is dead"});
  }
  if (open_.fetch_add(1) >= max_open_) {
    open_.fetch_sub(1);
    return refuse({Code::kOverloaded, fmt::format("the engine's queue is full ({} requests run or wait)", max_open_)});
  }
  inbox_.push(Command::submit(std::move(request)));
  return {};
}

void SteppedEngine::abort(RequestId id) noexcept {
  inbox_.push(Command::abort(id));
}

Stats SteppedEngine::stats() const {
  return published_.load();
}

Health SteppedEngine::health() const {
  return health_.load();
}

bool SteppedEngine::drain(std::chrono::milliseconds deadline) {
  Health ready = Health::kReady;
  if (!health_.compare_exchange_strong(ready, Health::kDraining) && ready != Health::kDraining) return false;
  drained_.wait_until(std::chrono::steady_clock::now() + deadline,
                      [this] { return undelivered_.load() == 0 || health_.load() == Health::kDead; });
  return undelivered_.load() == 0;
}

void SteppedEngine::stop() noexcept {
  // A stopped engine takes no requests, but it did not die: it stays "draining".
  Health ready = Health::kReady;
  health_.compare_exchange_strong(ready, Health::kDraining);
  stopping_.store(true);
  inbox_.wake();
  if (thread_.joinable()) thread_.join();
}

void SteppedEngine::finished(uint64_t count) {
  if (count == 0) return;
  undelivered_.fetch_sub(count);
  drained_.notify();
}

void SteppedEngine::take_commands() {
  inbox_.take(commands_);
  for (Command& command : commands_) {
    if (command.kind == Command::Kind::kSubmit) {
      ++taken_;
      stepper_->submit(std::move(command.request));
    } else {
      stepper_->abort(command.request.id);
    }
  }
  commands_.clear();
}

uint64_t SteppedEngine::count_ended() {
  const uint64_t ended = taken_ - stepper_->alive();
  return ended - std::exchange(ended_, ended);
}

void SteppedEngine::die(const Error& error) {
  health_.store(Health::kDead);
  DYN_ERROR("engine", "the engine is dead: {}", error.message);
  observer_->on_fatal(error);
  drained_.notify();
}

void SteppedEngine::run() {
  set_thread_name(options_.thread_name);
  StepOutput out;
  while (!stopping_.load()) {
    take_commands();
    auto turn = stepper_->turn(out);
    if (!turn) return die(turn.error());

    const uint64_t ended = count_ended();
    open_.fetch_sub(ended);
    published_.store(stepper_->stats());
    if (turn->has_output) {
      out.handed_out = std::chrono::steady_clock::now();
      observer_->on_step(out);
    }
    finished(ended);

    if (turn->idle) {
      inbox_.wait_until(Inbox::TimePoint::max());
    } else if (turn->not_before > std::chrono::steady_clock::now()) {
      inbox_.wait_until(turn->not_before);
    }
  }
}

}  // namespace dyn::engine
