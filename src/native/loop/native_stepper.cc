#include "native/loop/native_stepper.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "base/log.h"
#include "native/loop/plan_builder.h"
#include "native/loop/stop_check.h"

namespace dyn::native {
namespace {

engine::Caps make_caps(const NativeEngineOptions& options, const ExecutorLimits& limits, const ModelFacts& model) {
  const uint64_t pool_tokens = uint64_t{limits.num_pages} * limits.tokens_per_block;
  return {.name = "native",
          .vocab_size = model.vocab_size,
          .kv_block_size = limits.tokens_per_block,
          .total_kv_blocks = limits.num_pages,
          .max_seq_len = static_cast<uint32_t>(std::min<uint64_t>(model.max_seq_len, pool_tokens)),
          .max_batch_size = limits.max_batch_size,
          .max_num_tokens = limits.max_num_tokens,
          .max_logprobs = std::min(options.max_logprobs, model.vocab_size),
          .penalties = true,
          .min_p = true,
          .multiple_choices = true,
          .prompt_logprobs = true,
          .logit_bias = true,
          .bad_words = true};
}

Error dead(const Error& error) {
  return {Code::kEngineDead, "the executor failed: " + error.message};
}

}  // namespace

NativeStepper::NativeStepper(const NativeEngineOptions& options, std::unique_ptr<Executor> executor,
                             const ModelFacts& model)
    : executor_(std::move(executor)),
      options_(options),
      caps_(make_caps(options, executor_->limits(), model)),
      not_finite_{Code::kInternal, "the model's output for this request is not finite (NaN or no likely token)"},
      blocks_({.num_pages = executor_->limits().num_pages,
               .tokens_per_block = executor_->limits().tokens_per_block,
               .enable_reuse = options.enable_block_reuse,
               .record_events = options.record_kv_events}),
      scheduler_({.max_batch_size = executor_->limits().max_batch_size,
                  .max_num_tokens = executor_->limits().max_num_tokens,
                  .policy = options.capacity_policy,
                  .copy_tails = options.enable_partial_reuse,
                  .window = model.window,
                  .long_rope_from = model.long_rope_from},
                 blocks_),
      flights_(executor_->pipeline_depth()) {
  const uint32_t slots = executor_->limits().max_batch_size;
  free_slots_.reserve(slots);
  for (SlotId slot = slots; slot-- > 0;) free_slots_.push_back(slot);
  outputs_.reserve(slots);
}

Result<void> NativeStepper::prepare() {
  if (!options_.warm_up) return {};
  // A few tokens of prompt, a decode step, all memory of a step touched.
  const uint32_t max_tokens = std::min(2U, caps_.max_seq_len - 1);
  engine::Request request{.max_tokens = max_tokens};
  request.token_ids.resize(std::min(8U, caps_.max_seq_len - max_tokens));
  request.sampling.temperature = 0;
  submit(std::move(request));
  engine::StepOutput ignored;
  while (alive() > 0 || num_flights_ > 0) {
    if (auto done = turn(ignored); !done) return done.error().with_context("warming up");
  }
  blocks_.clear_cache();
  blocks_.take_events(kv_events_);
  kv_events_.clear();
  stats_ = {};
  return {};
}

void NativeStepper::submit(engine::Request request) {
  const auto [place, is_new] = requests_.try_emplace(request.id);
  if (!is_new) {
    DYN_ERROR("engine", "request id {} is in use; the second request of that id is dropped", request.id);
    return;
  }
  RequestState& entry = place->second;
  entry.open = request.num_choices;
  request.stop_token_ids.reserve(request.stop_token_ids.size() + request.visible_stop_token_ids.size());
  const auto num_hidden = static_cast<uint32_t>(request.stop_token_ids.size());
  request.stop_token_ids.insert(request.stop_token_ids.end(), request.visible_stop_token_ids.begin(),
                                request.visible_stop_token_ids.end());
  for (uint32_t choice = 0; choice < request.num_choices; ++choice) {
    Sequence& s = *entry.choices.emplace_back(std::make_unique<Sequence>());
    s.id = request.id;
    s.request = &entry;
    s.choice = choice;
    s.sampling = request.sampling;
    s.sampling.seed += choice;
    s.prompt_length = static_cast<uint32_t>(request.token_ids.size());
    s.max_length = s.prompt_length + request.max_tokens;
    s.min_tokens = request.min_tokens;
    s.num_hidden_stop_tokens = num_hidden;
    s.stop_tokens = request.stop_token_ids;
    s.logprobs = request.logprobs;
    s.priority = request.priority;
    s.arrival = ++last_arrival_;
    s.cache_salt = request.cache_salt;
    s.tokens.reserve(s.max_length);  // address space only: untouched pages cost nothing
    s.tokens.assign(request.token_ids.begin(), request.token_ids.end());
    s.table = blocks_.make_table(request.cache_salt);
    if (choice == 0) continue;
    s.state = SequenceState::kBound;
    entry.choices.front()->followers.push_back(&s);
  }
  Sequence& leader = *entry.choices.front();
  leader.prompt_logprobs = request.prompt_logprobs;
  if (leader.prompt_logprobs) {
    leader.prompt_logprobs = std::min(*leader.prompt_logprobs, caps_.vocab_size);
    entry.prompt_top_width = *leader.prompt_logprobs + 1;
    entry.prompt_scores.reserve(size_t{leader.prompt_length - 1} * entry.prompt_top_width);
  }
  scheduler_.add(leader);
}

void NativeStepper::abort(engine::RequestId id) {
  if (!requests_.contains(id)) return;
  end_request(id);
  ++stats_.requests_aborted;
}

Result<engine::Turn> NativeStepper::turn(engine::StepOutput& out) {
  if (num_flights_ < flights_.size()) {
    auto enqueued = enqueue_next();
    if (!enqueued) return enqueued.error();
    // Leave the device its work and plan the next step already.
    if (*enqueued && num_flights_ < flights_.size()) return engine::Turn{};
  }
  if (num_flights_ == 0) {
    if (alive() == 0) return engine::Turn{.idle = true};
    return Error{Code::kEngineDead, "no request can run, though some wait: the scheduler is broken"};
  }
  if (auto collected = collect(out); !collected) return collected.error();
  return engine::Turn{.has_output = true};
}

engine::Stats NativeStepper::stats() const {
  engine::Stats stats = stats_;
  stats.running = static_cast<uint32_t>(scheduler_.num_running());
  stats.waiting = static_cast<uint32_t>(scheduler_.num_waiting());
  const BlockStats blocks = blocks_.stats();
  stats.kv_blocks_used = blocks.pages_referenced;
  stats.kv_blocks_total = blocks.pages_total;
  stats.kv_block_hits = blocks.hits;
  stats.kv_block_misses = blocks.misses;
  stats.kv_block_evictions = blocks.evictions;
  return stats;
}

Result<bool> NativeStepper::enqueue_next() {
  scheduler_.schedule(schedule_);
  assign_slots();
  if (schedule_.rows.empty() && !schedule_.preempted.empty() && num_flights_ == 0) {
    // All that ran must be computed anew; they come back with the next schedule.
    scheduler_.schedule(schedule_);
    assign_slots();
  }
  if (schedule_.rows.empty()) return false;
  Flight& flight = flights_[(first_flight_ + num_flights_) % flights_.size()];
  flight.rows.clear();
  auto fork = schedule_.forks.begin();
  for (size_t r = 0; r < schedule_.rows.size(); ++r) {
    const ScheduledRow& row = schedule_.rows[r];
    flight.rows.push_back({.sequence = row.sequence,
                           .context = row.begin + row.count,
                           .samples = row.samples,
                           .scores = scored_tokens(row),
                           .scores_begin = row.begin});
    for (; fork != schedule_.forks.end() && fork->row == r; ++fork) {
      flight.rows.push_back({.sequence = fork->sequence, .context = row.begin + row.count, .samples = true});
    }
  }
  for (const Row& row : flight.rows) ++row.sequence->plans_in_flight;
  build_plan(schedule_, caps_.kv_block_size, flight.plan);
  ++num_flights_;
  if (auto enqueued = executor_->enqueue(flight.plan); !enqueued) return dead(enqueued.error());
  return true;
}

void NativeStepper::assign_slots() {
  for (Sequence* sequence : schedule_.preempted) free_slots_.push_back(sequence->slot);
  stats_.preemptions += schedule_.preempted.size();
  for (Sequence* sequence : schedule_.admitted) {
    sequence->slot = free_slots_.back();
    free_slots_.pop_back();
    if (sequence->admissions > 1 || sequence->choice > 0) continue;
    stats_.prompt_tokens += sequence->prompt_length;
    stats_.prompt_tokens_cached += sequence->cached_tokens;
    sequence->request->cached_tokens = sequence->cached_tokens;
  }
}

Result<void> NativeStepper::collect(engine::StepOutput& out) {
  Flight& flight = flights_[first_flight_];
  if (auto collected = executor_->collect(result_); !collected) return dead(collected.error());
  if (auto checked = check_result(flight.plan); !checked) return dead(checked.error());
  first_flight_ = (first_flight_ + 1) % flights_.size();
  --num_flights_;
  ++stats_.steps;

  outputs_.clear();
  prompt_scores_.clear();
  size_t sample = 0;
  size_t score = 0;
  size_t top = 0;
  for (const Row& row : flight.rows) {
    take_scores(row, score, top);
    take_row(row, sample);
    sample += row.samples ? 1 : 0;
  }
  drop_ended();
  kv_events_.clear();
  blocks_.take_events(kv_events_);
  out.step = stats_.steps;
  out.requests = outputs_;
  out.kv_events = kv_events_;
  out.stats = stats();
  return {};
}

Result<void> NativeStepper::check_result(const StepPlan& plan) const {
  const size_t samples = plan.samples.size();
  if (result_.tokens.size() != samples || result_.logprobs.size() != samples || result_.not_finite.size() != samples ||
      result_.top_offsets.size() != samples + 1 || result_.top_offsets.back() != result_.top.size()) {
    return internal_error("its result does not have the shape of the plan");
  }
  size_t scores = 0;
  size_t alternatives = 0;
  for (const PromptLogprobs& wanted : plan.prompt_logprobs) {
    scores += wanted.next.size();
    alternatives += wanted.next.size() * wanted.top;
  }
  if (result_.prompt_logprobs.size() != scores || result_.prompt_top.size() != alternatives) {
    return internal_error("its log-probabilities of prompts do not have the shape of the plan");
  }
  for (size_t i = 0; i < samples; ++i) {
    if (result_.tokens[i] >= caps_.vocab_size && result_.not_finite[i] == 0) {
      return internal_error(fmt::format("it sampled token {} of {}", result_.tokens[i], caps_.vocab_size));
    }
  }
  return {};
}

void NativeStepper::take_scores(const Row& row, size_t& score, size_t& top) {
  if (row.scores == 0) return;
  Sequence& sequence = *row.sequence;
  const uint32_t width = *sequence.prompt_logprobs;
  const auto alternatives = std::span(result_.prompt_top).subspan(top, size_t{row.scores} * width);
  if (sequence.state != SequenceState::kEnded) {
    // A chunk that was computed once more after a preemption brings some that are there already.
    for (uint32_t i = sequence.num_scored - std::min(sequence.num_scored, row.scores_begin); i < row.scores; ++i) {
      assert(sequence.num_scored == row.scores_begin + i);
      auto& scores = sequence.request->prompt_scores;
      scores.push_back(
          {.id = sequence.tokens[row.scores_begin + i + 1], .logprob = result_.prompt_logprobs[score + i], .rank = 0});
      const auto best = alternatives.subspan(size_t{i} * width, width);
      scores.insert(scores.end(), best.begin(), best.end());
      ++sequence.num_scored;
    }
  }
  score += row.scores;
  top += alternatives.size();
}

void NativeStepper::take_row(const Row& row, size_t sample) {
  Sequence& sequence = *row.sequence;
  --sequence.plans_in_flight;
  if (sequence.state == SequenceState::kEnded) return;
  if (row.samples) {
    --sequence.num_pending;
    if (result_.not_finite[sample] != 0) {
      blocks_.forget(sequence.table);  // what it computed must not spoil others
      add_output(sequence, sample, false, llm::FinishReason::kError);
      end_request(sequence.id);
      return;
    }
  }
  // Not when it lost its pages after the step was planned. It cannot have got others since: the next plan is made after
  // this step is collected.
  if (sequence.state == SequenceState::kRunning) {
    assert(row.context <= sequence.tokens.size());
    blocks_.commit(sequence.table, std::span(sequence.tokens).first(row.context));
  }
  if (row.samples) take_token(sequence, sample);
}

void NativeStepper::take_token(Sequence& sequence, size_t sample) {
  const TokenId token = result_.tokens[sample];
  const StopCheck check = check_stop(sequence, token);
  if (check.emit) {
    sequence.tokens.push_back(token);
    ++stats_.tokens_generated;
    ++sequence.request->completion_tokens;
  }
  add_output(sequence, sample, check.emit, check.finish);
  if (check.stop_token) outputs_.back().stop_token = token;
  if (check.finish != llm::FinishReason::kNone) end(sequence);
}

void NativeStepper::add_output(Sequence& sequence, size_t sample, bool emit, llm::FinishReason finish) {
  RequestState& request = *sequence.request;
  engine::RequestOutput& output = outputs_.emplace_back();
  output.id = sequence.id;
  output.choice = sequence.choice;
  output.finish = finish;
  if (finish == llm::FinishReason::kError) output.error = &not_finite_;
  if (emit) {
    output.tokens = std::span(result_.tokens).subspan(sample, 1);
    if (sequence.logprobs) {
      output.logprobs = std::span(result_.logprobs).subspan(sample, 1);
      output.top_width = result_.top_offsets[sample + 1] - result_.top_offsets[sample];
      output.top = std::span(result_.top).subspan(result_.top_offsets[sample], output.top_width);
    }
  }
  output.prompt_tokens = sequence.prompt_length;
  output.completion_tokens = request.completion_tokens;
  output.cached_tokens = request.cached_tokens;
  if (finish == llm::FinishReason::kNone) return;
  output.more_choices = finish != llm::FinishReason::kError && request.open > 1;
  if (output.more_choices) return;
  ++stats_.requests_finished;
  if (request.prompt_scores.empty()) return;
  output.prompt_top_width = request.prompt_top_width;
  output.prompt_logprobs = prompt_scores_.emplace_back(std::move(request.prompt_scores));
}

void NativeStepper::end(Sequence& sequence) {
  if (sequence.state == SequenceState::kRunning) free_slots_.push_back(sequence.slot);
  scheduler_.remove(sequence);
  const auto found = requests_.find(sequence.id);
  assert(found != requests_.end());
  RequestState& request = found->second;
  ended_.push_back(std::move(request.choices[sequence.choice]));
  if (--request.open == 0) requests_.erase(found);
  if (num_flights_ == 0) drop_ended();
}

void NativeStepper::end_request(engine::RequestId id) {
  const RequestState& request = requests_.at(id);
  // The state is gone with the last choice.
  for (size_t open = request.open, choice = 0; open > 0; ++choice) {
    Sequence* sequence = request.choices[choice].get();
    if (sequence == nullptr) continue;
    --open;
    end(*sequence);
  }
}

void NativeStepper::drop_ended() {
  std::erase_if(ended_, [](const auto& sequence) { return sequence->plans_in_flight == 0; });
}

}  // namespace dyn::native
