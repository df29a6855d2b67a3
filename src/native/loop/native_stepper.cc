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
                  .policy = options.capacity_policy},
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
  auto sequence = std::make_unique<Sequence>();
  Sequence& s = *sequence;
  if (!sequences_.try_emplace(request.id, std::move(sequence)).second) {
    DYN_ERROR("engine", "request id {} is in use; the second request of that id is dropped", request.id);
    return;
  }
  s.id = request.id;
  s.sampling = request.sampling;
  s.prompt_length = static_cast<uint32_t>(request.token_ids.size());
  s.max_length = s.prompt_length + request.max_tokens;
  s.min_tokens = request.min_tokens;
  s.num_hidden_stop_tokens = static_cast<uint32_t>(request.stop_token_ids.size());
  s.stop_tokens = std::move(request.stop_token_ids);
  s.stop_tokens.insert(s.stop_tokens.end(), request.visible_stop_token_ids.begin(),
                       request.visible_stop_token_ids.end());
  s.logprobs = request.logprobs;
  s.priority = request.priority;
  s.arrival = ++last_arrival_;
  s.tokens = std::move(request.token_ids);
  s.tokens.reserve(s.max_length);  // address space only: untouched pages cost nothing
  s.table = blocks_.make_table(request.cache_salt);
  scheduler_.add(s);
}

void NativeStepper::abort(engine::RequestId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  end(*found->second);
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
  return stats;
}

Result<bool> NativeStepper::enqueue_next() {
  scheduler_.schedule(schedule_);
  assign_slots();
  if (schedule_.rows.empty()) return false;
  Flight& flight = flights_[(first_flight_ + num_flights_) % flights_.size()];
  flight.rows.clear();
  for (const ScheduledRow& row : schedule_.rows) {
    flight.rows.push_back({row.sequence, row.begin + row.count, row.samples});
    ++row.sequence->plans_in_flight;
  }
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
    if (sequence->admissions > 1) continue;
    stats_.prompt_tokens += sequence->prompt_length;
    stats_.prompt_tokens_cached += sequence->cached_tokens;
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
  size_t sample = 0;
  for (const Row& row : flight.rows) {
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
  for (size_t i = 0; i < samples; ++i) {
    if (result_.tokens[i] >= caps_.vocab_size && result_.not_finite[i] == 0) {
      return internal_error(fmt::format("it sampled token {} of {}", result_.tokens[i], caps_.vocab_size));
    }
  }
  return {};
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
      end(sequence);
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
  }
  add_output(sequence, sample, check.emit, check.finish);
  if (check.stop_token) outputs_.back().stop_token = token;
  if (check.finish != llm::FinishReason::kNone) end(sequence);
}

void NativeStepper::add_output(Sequence& sequence, size_t sample, bool emit, llm::FinishReason finish) {
  engine::RequestOutput& output = outputs_.emplace_back();
  output.id = sequence.id;
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
  output.completion_tokens = sequence.num_generated();
  output.cached_tokens = sequence.cached_tokens;
  if (finish != llm::FinishReason::kNone) ++stats_.requests_finished;
}

void NativeStepper::end(Sequence& sequence) {
  if (sequence.state == SequenceState::kRunning) free_slots_.push_back(sequence.slot);
  scheduler_.remove(sequence);
  const auto found = sequences_.find(sequence.id);
  assert(found != sequences_.end());
  ended_.push_back(std::move(found->second));
  sequences_.erase(found);
  if (num_flights_ == 0) drop_ended();
}

void NativeStepper::drop_ended() {
  std::erase_if(ended_, [](const auto& sequence) { return sequence->plans_in_flight == 0; });
}

}  // namespace dyn::native
