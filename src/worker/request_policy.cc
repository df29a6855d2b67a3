#include "worker/request_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/ids.h"

namespace dyn::worker {

namespace {

constexpr uint32_t kMaxChoices = 128;  // what frontends allow
// Log-probabilities of a prompt are one item of the response, some 50 bytes each: it must fit the buffer of a stream.
constexpr uint64_t kMaxPromptLogprobs = 1u << 14;

// A number in [low, high], or an error that names the option.
Result<float> in_range(std::string_view name, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    return invalid_argument(fmt::format("{}: {} is outside {} ... {}", name, value, low, high));
  }
  return static_cast<float>(value);
}

Error not_supported(std::string_view name, std::string_view why) {
  return unsupported(fmt::format("{}: {}", name, why));
}

Result<void> check_choices(const llm::Request& request, const engine::Caps& caps) {
  const llm::SamplingOptions& sampling = request.sampling;
  const uint32_t choices = sampling.n.value_or(1);
  if (choices == 0 || choices > kMaxChoices) {
    return invalid_argument(fmt::format("n: {} choices, from 1 to {} can be given", choices, kMaxChoices));
  }
  if (choices > 1 && !caps.multiple_choices) {
    return not_supported("n", fmt::format("{} choices are not supported by this worker, use 1", choices));
  }
  if (choices > 1 && !request.keeps_choices_apart) {
    return not_supported("n", "frontends before 1.5 do not keep choices apart, use 1");
  }
  if (const uint32_t best_of = sampling.best_of.value_or(1); best_of > 1 && best_of != choices) {
    return not_supported("best_of", fmt::format("{} candidates for {} choices are not supported by this worker, use 1",
                                                best_of, choices));
  }
  if (sampling.use_beam_search.value_or(false)) return not_supported("use_beam_search", "beam search is not supported");
  if (sampling.length_penalty.value_or(1.0) != 1.0) {
    return not_supported("length_penalty", "has a meaning for beam search only, which is not supported");
  }
  if (sampling.guided_decoding && !sampling.guided_decoding->kind.empty() && !caps.guided_decoding) {
    return not_supported("guided_decoding",
                         fmt::format("'{}' constraints (guided_*, response_format, forced tool calls) "
                                     "are not supported by this worker",
                                     sampling.guided_decoding->kind));
  }
  return {};
}

Result<engine::SamplingParams> to_params(const llm::SamplingOptions& from, const engine::Caps& caps) {
  engine::SamplingParams to;
  constexpr double kHuge = std::numeric_limits<float>::max();

  const bool any = from.temperature || from.top_p || from.top_k.value_or(0) > 0 || from.min_p;
  to.temperature = any ? 1.0F : 0.0F;
  if (from.temperature) {
    auto value = in_range("temperature", *from.temperature, 0, kHuge);
    if (!value) return value.error();
    to.temperature = *value;
  }
  if (from.top_p) {
    auto value = in_range("top_p", *from.top_p, 0, 1);
    if (!value) return value.error();
    to.top_p = *value;
    if (to.top_p == 0.0F) to.temperature = 0.0F;  // only the best token is left
  }
  if (from.min_p) {
    auto value = in_range("min_p", *from.min_p, 0, 1);
    if (!value) return value.error();
    if (*value > 0 && !caps.min_p) return not_supported("min_p", "is not supported by this engine");
    to.min_p = *value;
  }
  if (from.top_k && *from.top_k > 0) {
    to.top_k = static_cast<uint32_t>(std::min<int64_t>(*from.top_k, caps.vocab_size));
  }

  const auto penalty = [&](const char* name, const std::optional<double>& value, double low, double high,
                           float& target) -> Result<void> {
    if (!value) return {};
    auto checked = in_range(name, *value, low, high);
    if (!checked) return checked.error();
    target = *checked;
    return {};
  };
  if (auto ok = penalty("repetition_penalty", from.repetition_penalty, 1e-6, kHuge, to.repetition_penalty); !ok) {
    return ok.error();
  }
  if (auto ok = penalty("presence_penalty", from.presence_penalty, -2, 2, to.presence_penalty); !ok) return ok.error();
  if (auto ok = penalty("frequency_penalty", from.frequency_penalty, -2, 2, to.frequency_penalty); !ok) {
    return ok.error();
  }
  if (to.has_penalties() && !caps.penalties) {
    const char* name = to.repetition_penalty != 1.0F ? "repetition_penalty"
                       : to.presence_penalty != 0.0F ? "presence_penalty"
                                                     : "frequency_penalty";
    return not_supported(name, "is not supported by this engine");
  }
  to.seed = from.seed ? static_cast<uint64_t>(*from.seed) : random_u64();
  return to;
}

void append_unique(std::vector<llm::TokenId>& to, const std::vector<llm::TokenId>& from) {
  for (const auto id : from) {
    if (std::find(to.begin(), to.end(), id) == to.end()) to.push_back(id);
  }
}

// Which tokens end the answer, and which of those are part of it.
void set_stop_tokens(const llm::Request& from, engine::Request& to) {
  // 1.6: the frontend shows the stop token and ends the request itself.
  if (from.output.no_stop_trim) return;
  to.visible_stop_token_ids = from.stop.stop_token_ids_visible;
  append_unique(to.stop_token_ids, from.stop.stop_token_ids);
  if (!from.stop.ignore_eos) {
    append_unique(to.stop_token_ids, from.eos_token_ids);
    append_unique(to.stop_token_ids, from.stop.stop_token_ids_hidden);
  }
  // A token in both lists is shown.
  std::erase_if(to.stop_token_ids, [&](llm::TokenId id) {
    return std::find(to.visible_stop_token_ids.begin(), to.visible_stop_token_ids.end(), id) !=
           to.visible_stop_token_ids.end();
  });
}

}  // namespace

RequestPolicy::RequestPolicy(engine::Caps caps, PolicyOptions options)
    : caps_(std::move(caps)), options_(std::move(options)) {}

Result<void> RequestPolicy::check_served(const llm::Request& request) const {
  const auto& names = options_.served_model_names;
  if (!request.model.empty() && !names.empty() && std::find(names.begin(), names.end(), request.model) == names.end()) {
    return invalid_argument(fmt::format("model: '{}' is not served by this worker", request.model));
  }
  if (!request.token_id_batches.empty()) return not_supported("token_ids", "embeddings are not served by this worker");
  if (request.has_prompt_embeds) return not_supported("prompt_embeds", "this worker takes tokens only");
  if (request.has_multi_modal_data) return not_supported("multi_modal_data", "this worker serves text only");
  if (request.has_encoder_result) return not_supported("encoder_result", "this worker serves text only");
  if (request.has_prefill_result) {
    return not_supported("prefill_result", "this worker is aggregated and cannot continue a remote prefill");
  }
  if (request.has_bootstrap_info) return not_supported("bootstrap_info", "this worker is aggregated");
  if (!request.routing.lora_name.empty()) {
    return not_supported("lora_name", fmt::format("no adapter '{}' on this worker", request.routing.lora_name));
  }
  if (request.routing.dp_rank.value_or(0) != 0) {
    return invalid_argument(
        fmt::format("dp_rank: {} does not exist, this worker has rank 0", *request.routing.dp_rank));
  }
  return {};
}

Result<void> RequestPolicy::check_prompt(const llm::Request& request) const {
  const auto& ids = request.token_ids;
  if (ids.empty()) return invalid_argument("token_ids: the prompt has no tokens");
  if (ids.size() >= caps_.max_seq_len) {
    return invalid_argument(
        fmt::format("token_ids: the prompt has {} tokens, with at least one token of answer the limit is {}",
                    ids.size(), caps_.max_seq_len));
  }
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= caps_.vocab_size) {
      return invalid_argument(fmt::format("token_ids: {} at position {} is outside the vocabulary of {} tokens", ids[i],
                                          i, caps_.vocab_size));
    }
  }
  return {};
}

Result<engine::Request> RequestPolicy::to_engine(llm::Request request, engine::RequestId id) const {
  if (auto ok = check_served(request); !ok) return ok.error();
  if (auto ok = check_prompt(request); !ok) return ok.error();
  if (auto ok = check_choices(request, caps_); !ok) return ok.error();
  if (request.stop.max_thinking_tokens) {
    return not_supported("max_thinking_tokens", "a thinking budget is not supported by this worker");
  }
  if (request.output.prompt_logprobs && !caps_.prompt_logprobs) {
    return not_supported("prompt_logprobs", "log-probabilities of the prompt (also asked by echo) are not supported");
  }
  if (const uint32_t top = request.output.prompt_logprobs.value_or(0); top > caps_.max_logprobs) {
    return invalid_argument(
        fmt::format("prompt_logprobs: {} alternatives asked, the limit is {}", top, caps_.max_logprobs));
  } else if (request.output.prompt_logprobs && (uint64_t{top} + 1) * request.token_ids.size() > kMaxPromptLogprobs) {
    return invalid_argument(
        fmt::format("prompt_logprobs: {} tokens with {} alternatives each are more than {} log-probabilities",
                    request.token_ids.size(), top, kMaxPromptLogprobs));
  }
  if (request.output.logprobs.value_or(0) > caps_.max_logprobs) {
    return invalid_argument(
        fmt::format("logprobs: {} alternatives asked, the limit is {}", *request.output.logprobs, caps_.max_logprobs));
  }

  auto params = to_params(request.sampling, caps_);
  if (!params) return params.error();

  engine::Request to;
  to.id = id;
  to.sampling = *params;
  const auto rest = caps_.max_seq_len - static_cast<uint32_t>(request.token_ids.size());
  to.max_tokens = std::min(request.stop.max_tokens.value_or(rest), rest);
  to.min_tokens = std::min(request.stop.min_tokens.value_or(0), to.max_tokens);
  set_stop_tokens(request, to);
  to.logprobs = request.output.logprobs;
  to.prompt_logprobs = request.output.prompt_logprobs;
  to.num_choices = request.sampling.n.value_or(1);
  to.priority = static_cast<int32_t>(std::clamp<int64_t>(request.routing.priority.value_or(0), INT32_MIN, INT32_MAX));
  // A probe must not be answered from, nor end up in, the cache of real prompts (as the 1.6.1 handler does).
  to.cache_salt = std::move(request.routing.cache_salt);
  if (to.cache_salt.empty() && request.is_health_check) to.cache_salt = "dynamo-health-check";
  to.token_ids = std::move(request.token_ids);
  return to;
}

}  // namespace dyn::worker
