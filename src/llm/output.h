// Items of a response stream: chunks of tokens, errors, the final item. Encoders only, straight into the send buffer.
//
//   OutputChunk chunk{.tokens = tokens, .finish = FinishReason::kStop, .usage = usage};
//   encode_chunk(stream->begin_item(), codec, chunk);
//   stream->end_item();
//
// A chunk becomes {"data":{"data":{"token_ids":[..],...}},"complete_final":false}; members that are not set are left
// out. Nothing is allocated unless the buffer has to grow. Log-probabilities that are not finite are clamped to
// kLowestLogprob: JSON knows no infinity and a frontend would lose the whole item.
// Facts: Annotated and LLMEngineOutput of Dynamo 0.8 ... 1.6 (lib/llm/src/protocols/common/llm_backend.rs).
// Ownership: spans are read during the call. Thread rules: plain functions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/buffer.h"
#include "base/result.h"
#include "llm/request.h"
#include "llm/tokens.h"

namespace dyn::llm {

inline constexpr float kLowestLogprob = -9999.0F;

struct Usage {
  uint32_t prompt_tokens = 0;
  uint32_t completion_tokens = 0;
  std::optional<uint32_t> cached_tokens;  // prompt_tokens_details; nothing: null
};

// Read by the KV router of 1.6 for its counters.
struct KvCacheHit {
  uint32_t prompt_tokens = 0;
  uint32_t reused_tokens = 0;
};

struct OutputChunk {
  std::span<const TokenId> tokens;  // new ones only; may be empty
  std::span<const float> logprobs;  // one a token, or empty: not asked for
  std::span<const TopLogprob> top;  // tokens.size() * top_width alternatives, token by token
  uint32_t top_width = 0;           // with logprobs, 0 gives one empty list a token
  FinishReason finish = FinishReason::kNone;
  std::optional<TokenId> stop_token;  // stop_reason: the user's own stop token that ended the answer
  std::optional<uint32_t> index;      // choice; nothing: 0
  std::optional<Usage> usage;         // with the last chunk
  std::optional<KvCacheHit> kv_cache_hit;
  // Of each prompt token but the first: its own entry (rank 0: look among the others), then the alternatives. Read
  // since 1.5 and shown as the answer's `prompt_logprobs`. The choice that ends last has them.
  std::span<const TopLogprob> prompt_logprobs;
  uint32_t prompt_top_width = 0;  // entries a token
};

void encode_chunk(Buffer& out, Codec codec, const OutputChunk& chunk);

// {"complete_final":true}: exactly once, as the last item of a stream that ended by itself.
void encode_complete_final(Buffer& out, Codec codec);

// The error types that every frontend since 1.0 knows; a frontend loses an item with a type that it does not know.
enum class ErrorType : uint8_t {
  kUnknown,
  kInvalidArgument,  // the request is wrong; not tried again
  kCannotConnect,
  kDisconnected,
  kConnectionTimeout,
  kEngineShutdown,  // {"Backend":"EngineShutdown"}: tried again on another worker
};
std::string_view to_string(ErrorType type);

struct ErrorItem {
  ErrorType type = ErrorType::kUnknown;
  std::string_view message;
  uint16_t http_code = 0;  // not 0: the text is {"message":...,"code":...}, and frontends answer with that status
};

// One error item; a complete-final item has to follow. With kInvalidArgument, code 400 and as the first item of the
// stream it becomes status 400 in every version.
void encode_error(Buffer& out, Codec codec, const ErrorItem& item);

// How an Error is told to a frontend: bad arguments and unsupported options with code 400, an overload with code 503,
// a dead or draining engine as something to try elsewhere, the rest as unknown. The view points into `error`.
ErrorItem to_error_item(const Error& error);

}  // namespace dyn::llm
