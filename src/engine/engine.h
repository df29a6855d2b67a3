// The engine interface: whole LLM engines behind the worker (mock, native, TensorRT-LLM, plug-ins).
//
//   engine->start(observer);
//   engine->submit({.id = 7, .token_ids = {1, 2, 3}, .max_tokens = 16, ...});
//   // ... observer.on_step() once per step, on the engine thread ...
//   engine->abort(7);
//   engine->drain(deadline);   // no more submits; running requests may finish
//   engine->stop();
//
// Ownership: the caller owns the engine and the observer; the observer must outlive stop(). Thread rules: submit(),
// abort(), stats(), health() from any thread; start(), drain(), stop() from one control thread. The Observer is called
// on the engine's own thread and must not block, throw or call stop().
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "llm/kv_event.h"
#include "llm/tokens.h"

namespace dyn::engine {

using llm::FinishReason;
using llm::TokenId;
using llm::TopLogprob;

// Chosen by the caller, unique among the requests that are alive. The engine treats it as opaque.
using RequestId = uint64_t;

// What an engine can do; the worker refuses the rest by name before the engine sees it.
struct Caps {
  std::string name;            // "native", "mock"
  uint32_t vocab_size = 0;     // token ids must be below
  uint32_t kv_block_size = 0;  // tokens of a KV block, as the card and the KV router need it
  uint64_t total_kv_blocks = 0;
  uint32_t max_seq_len = 0;     // prompt + answer
  uint32_t max_batch_size = 0;  // sequences of a step
  uint32_t max_num_tokens = 0;  // tokens of a step
  uint32_t max_logprobs = 0;    // alternatives a request may ask for
  bool penalties = false;       // repetition, presence, frequency
  bool min_p = false;
  bool multiple_choices = false;  // n > 1
  bool prompt_logprobs = false;
  bool logit_bias = false;
  bool bad_words = false;
  bool guided_decoding = false;
};

// How the next token is chosen. Values are checked by the worker; the defaults are "off".
struct SamplingParams {
  float temperature = 1.0F;  // 0: greedy
  uint32_t top_k = 0;        // 0: off
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  uint64_t seed = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;  // added to the logits before everything else; -inf forbids
  std::vector<std::vector<TokenId>> bad_words;        // token sequences that the answer must not contain

  [[nodiscard]] bool greedy() const { return temperature <= 0.0F || top_k == 1; }
  [[nodiscard]] bool has_penalties() const {
    return repetition_penalty != 1.0F || presence_penalty != 0.0F || frequency_penalty != 0.0F;
  }
};

// A request as an engine sees it: every default filled in, nothing of the wire left.
struct Request {
  RequestId id = 0;
  std::vector<TokenId> token_ids;  // the prompt, at least one token
  SamplingParams sampling;
  uint32_t max_tokens = 0;                      // generated tokens; prompt + max_tokens never exceeds max_seq_len
  uint32_t min_tokens = 0;                      // no stop token is obeyed before
  std::vector<TokenId> stop_token_ids;          // end the answer and are left out of it
  std::vector<TokenId> visible_stop_token_ids;  // end the answer and are its last token
  std::optional<uint32_t> logprobs;             // alternatives to report for every token; 0: only the chosen one
  std::optional<uint32_t> prompt_logprobs;      // the same for the tokens of the prompt but the first
  uint32_t num_choices = 1;                     // answers to the prompt; the i-th (from 0) is drawn with seed + i
  int32_t priority = 0;                         // higher first
  std::string cache_salt;                       // requests share KV blocks only with the same salt
};

// What happened to one choice of a request in one step. Spans are valid during the call only.
struct RequestOutput {
  RequestId id = 0;
  uint32_t choice = 0;
  std::span<const TokenId> tokens;  // new ones only
  std::span<const float> logprobs;  // one a token, or empty
  std::span<const TopLogprob> top;  // tokens.size() * top_width alternatives, token by token
  uint32_t top_width = 0;           // alternatives per token
  FinishReason finish = FinishReason::kNone;
  bool more_choices = false;          // valid with finish: another choice of the request has not ended
  std::optional<TokenId> stop_token;  // the stop token that ended it, when one did
  const Error* error = nullptr;       // set iff finish == kError
  uint32_t prompt_tokens = 0;         // valid with finish
  uint32_t completion_tokens = 0;     // valid with finish: all tokens handed out so far, of all choices
  uint32_t cached_tokens = 0;         // prompt tokens whose KV was reused
  // With the output that ends the request, if asked for: of each prompt token but the first its own entry (rank 0: not
  // known), then the alternatives, prompt_top_width entries in all.
  std::span<const TopLogprob> prompt_logprobs;
  uint32_t prompt_top_width = 0;
};

struct Stats {
  uint64_t steps = 0;
  uint32_t running = 0;
  uint32_t waiting = 0;
  uint64_t kv_blocks_used = 0;
  uint64_t kv_blocks_total = 0;
  uint64_t requests_finished = 0;
  uint64_t requests_aborted = 0;
  uint64_t tokens_generated = 0;
  uint64_t prompt_tokens = 0;
  uint64_t prompt_tokens_cached = 0;
  uint64_t preemptions = 0;
  uint64_t kv_block_hits = 0;    // blocks of prompts that were found in the cache
  uint64_t kv_block_misses = 0;  // and those that were looked for in vain
  uint64_t kv_block_evictions = 0;
};

// Everything of one step.
struct StepOutput {
  uint64_t step = 0;
  std::chrono::steady_clock::time_point handed_out;  // when the engine called
  std::span<const RequestOutput> requests;
  std::span<const llm::KvEvent> kv_events;
  Stats stats;
};

class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_step(const StepOutput& step) noexcept = 0;
  // The engine is dead; every unfinished request is lost. Called at most once, nothing follows.
  virtual void on_fatal(const Error& error) noexcept = 0;
};

enum class Health : uint8_t { kStarting, kReady, kDraining, kDead };

class Engine {
 public:
  virtual ~Engine() = default;

  [[nodiscard]] virtual Caps caps() const = 0;

  // Starts the engine thread. Returns when requests can be submitted.
  virtual Result<void> start(Observer& observer) = 0;

  // Takes the request over. Every choice of an accepted id gets exactly one output with finish != kNone, unless the
  // request is aborted first; the last of them has no more_choices. One with kError ends the request, without outputs
  // for its other choices. Errors: kOverloaded (queue limit), kInvalidArgument (an impossible request), kUnavailable
  // (draining), kEngineDead.
  virtual Result<void> submit(Request request) = 0;

  // The request's KV blocks are free after the next step. No output of it is handed out after the step in which the
  // abort is seen; no final output is promised. Unknown and finished ids are ignored.
  virtual void abort(RequestId id) noexcept = 0;

  [[nodiscard]] virtual Stats stats() const = 0;
  [[nodiscard]] virtual Health health() const = 0;

  // Refuses new requests and returns when the running ones ended or at the deadline; true when all ended.
  virtual bool drain(std::chrono::milliseconds deadline) = 0;

  // Ends the engine thread; unfinished requests are dropped without output. Idempotent.
  virtual void stop() noexcept = 0;
};

}  // namespace dyn::engine
