// Sequence: one choice of a request on its way through the native engine: what is known of its text, how far its KV is,
// where it stands in queue, batch and pool. Plain data; scheduler and step loop change it. Thread rules: the engine
// thread.
//
//   known tokens     tokens          prompt, then answer as far as steps were collected
//   sampled ahead    num_pending     tokens that a step in flight samples; their values are not known yet
//   KV positions     num_computed    computed, or planned in a step in flight
//
// A sequence may be planned while num_computed < length(), that is: while there is a token whose KV is missing.
//
// Of a request with several choices the first is the leader. The others are bound to it until its prompt is computed;
// then they begin with a sample of its last row, or, where there is no room for them, wait as any other sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "native/exec/step_plan.h"
#include "native/kv/block_manager.h"

namespace dyn::native {

enum class SequenceState : uint8_t { kBound, kWaiting, kRunning, kEnded };

struct Sequence;

// What the choices of a request have in common. The step loop's; it outlives them.
struct RequestState {
  std::vector<std::unique_ptr<Sequence>> choices;  // by index; empty: ended
  size_t open = 0;                                 // of them
  uint32_t completion_tokens = 0;                  // of all choices
  uint32_t cached_tokens = 0;
  // Log-probabilities of prompt tokens: of each its own (rank 0), then the alternatives.
  std::vector<engine::TopLogprob> prompt_scores;
  uint32_t prompt_top_width = 0;
};

struct Sequence {
  // Of the request; constant.
  engine::RequestId id = 0;
  RequestState* request = nullptr;
  uint32_t choice = 0;  // its index among the request's choices
  engine::SamplingParams sampling;
  uint32_t prompt_length = 0;
  uint32_t max_length = 0;  // prompt and answer
  uint32_t min_tokens = 0;
  std::vector<TokenId> stop_tokens;  // the hidden ones, then the visible ones
  uint32_t num_hidden_stop_tokens = 0;
  std::optional<uint32_t> logprobs;
  std::optional<uint32_t> prompt_logprobs;  // alternatives; of the leader only
  std::string cache_salt;
  int32_t priority = 0;
  uint64_t arrival = 0;  // ascending, also within a request

  // Progress.
  std::vector<TokenId> tokens;
  uint32_t num_computed = 0;
  uint32_t num_pending = 0;
  uint32_t pending_sample = 0;  // sampling row of the pending token in the plan enqueued last

  uint32_t num_scored = 0;  // prompt tokens from the second on whose log-probabilities were collected

  // Place.
  SequenceState state = SequenceState::kWaiting;
  BlockTable table;
  bool long_rope = false;            // which variant its KV is of; see SchedulerLimits
  std::vector<Sequence*> followers;  // of a leader: the choices that are bound to it
  SlotId slot = 0;                   // valid while running
  bool slot_started = false;         // the executor knows what the slot samples
  uint32_t admissions = 0;           // counts entries into the batch: more than one after a preemption
  uint32_t cached_tokens = 0;        // of the first admission
  uint32_t overtaken = 0;            // admissions of later arrivals while it waited as the oldest
  uint32_t plans_in_flight = 0;      // enqueued plans with a row of it
  bool planned_now = false;          // has a row in the schedule being made

  [[nodiscard]] uint32_t length() const { return static_cast<uint32_t>(tokens.size()) + num_pending; }
  [[nodiscard]] uint32_t num_generated() const { return static_cast<uint32_t>(tokens.size()) - prompt_length; }
  // The answer is as long as it may become, with what steps in flight will give.
  [[nodiscard]] bool at_limit() const { return length() >= max_length; }
  // Tokens whose KV is missing; 0: nothing to plan.
  [[nodiscard]] uint32_t remaining() const { return at_limit() && num_pending > 0 ? 0 : length() - num_computed; }
  // Prompt tokens have log-probabilities to come, so their rows must be computed.
  [[nodiscard]] bool wants_scores() const { return prompt_logprobs && num_scored + 1 < prompt_length; }
  // KV positions it can ever need: that of the last token is never computed.
  [[nodiscard]] uint32_t max_kv_tokens() const { return max_length - 1; }
};

// Order of service: higher priority first, then first come first served.
inline bool goes_before(const Sequence& a, const Sequence& b) {
  return a.priority != b.priority ? a.priority > b.priority : a.arrival < b.arrival;
}

}  // namespace dyn::native
