// The request that a frontend sends to `generate` (Dynamo's PreprocessedRequest): decoded, nothing interpreted yet.
//
// Every optional member keeps the difference between "not said" and "said": the worker's policy decides what is
// honoured, what is refused by name. Unknown keys are ignored, null counts as absent, as Dynamo 0.8 ... 1.6 do
// (lib/llm/src/protocols/common/preprocessor.rs). Plain values; no thread rules.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "llm/tokens.h"
#include "wire/padding.h"

namespace dyn::llm {

struct StopConditions {
  std::optional<uint32_t> max_tokens;
  std::optional<uint32_t> min_tokens;
  std::vector<std::string> stop;                // strings: searched by the frontend in the text
  std::vector<TokenId> stop_token_ids;          // 1.5+: given by the client
  std::vector<TokenId> stop_token_ids_visible;  // 1.5+: end the answer, and are shown
  std::vector<TokenId> stop_token_ids_hidden;   // end the answer, never shown (the frontend puts eos here)
  bool ignore_eos = false;
  std::optional<uint32_t> max_thinking_tokens;
};

// One grammar constraint; at most one of the members is set by a frontend, none means "no constraint".
struct GuidedDecoding {
  std::string kind;  // "json", "regex", "choice", "grammar", "structural_tag"; empty: nothing to enforce
  std::string text;  // the constraint as JSON text (json, choice, structural_tag) or as is (regex, grammar)
  std::string backend;
  std::string whitespace_pattern;
};

struct SamplingOptions {
  std::optional<uint32_t> n;
  std::optional<uint32_t> best_of;
  std::optional<double> presence_penalty;
  std::optional<double> frequency_penalty;
  std::optional<double> repetition_penalty;
  std::optional<double> temperature;
  std::optional<double> top_p;
  std::optional<int64_t> top_k;  // <= 0: off
  std::optional<double> min_p;
  std::optional<bool> use_beam_search;
  std::optional<double> length_penalty;
  std::optional<int64_t> seed;
  std::optional<bool> include_stop_str_in_output;  // used by the frontend
  std::optional<GuidedDecoding> guided_decoding;
};

struct OutputOptions {
  std::optional<uint32_t> logprobs;  // number of alternatives; 0 still asks for the chosen token's
  std::optional<uint32_t> prompt_logprobs;
  std::optional<bool> skip_special_tokens;         // used by the frontend
  std::optional<bool> formatted_prompt;            // used by the frontend
  std::optional<bool> return_tokens_as_token_ids;  // used by the frontend
  bool no_stop_trim = false;                       // 1.6: do not stop on stop tokens, the frontend ends the request
};

struct Routing {
  std::optional<uint32_t> dp_rank;
  std::optional<int64_t> priority;
  std::string lora_name;
  std::string cache_salt;
};

struct Request {
  std::string model;
  std::vector<TokenId> token_ids;
  std::vector<std::vector<TokenId>> token_id_batches;  // an embedding request: a list of lists
  StopConditions stop;
  SamplingOptions sampling;
  OutputOptions output;
  std::vector<TokenId> eos_token_ids;
  std::vector<std::string> annotations;
  Routing routing;
  bool is_health_check = false;  // "_HEALTH_CHECK"
  // The frontend has a text of its own for each choice (1.5+; known by an output option that came with it). Older ones
  // mix the choices of a chat into one text.
  bool keeps_choices_apart = false;

  // Present, but for a later role; what cannot be served is refused by these names.
  bool has_prompt_embeds = false;
  bool has_multi_modal_data = false;
  bool has_prefill_result = false;
  bool has_bootstrap_info = false;
  bool has_encoder_result = false;
  bool require_reasoning = false;
};

enum class Codec : uint8_t { kJson, kMsgpack };

// Limits of a request's body. A body beyond them is an error of kind kInvalidArgument, before memory is taken for it.
struct RequestLimits {
  size_t max_tokens = 4'000'000;  // token ids in one request
  unsigned max_depth = 64;        // nesting of objects and lists
};

// Decodes a body. Wrong types, out-of-range numbers, NaN, truncated or trailing bytes are errors that name the member.
// A caller whose body has wire::kReadPadding readable bytes behind it says so and saves a copy of a JSON body.
Result<Request> decode_request(Bytes body, Codec codec, const RequestLimits& limits = {},
                               wire::Padding padding = wire::Padding::kNone);

}  // namespace dyn::llm
