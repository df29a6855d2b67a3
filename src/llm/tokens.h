// Vocabulary types shared by request, output and engine.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace dyn::llm {

using TokenId = uint32_t;

// One alternative for a token.
struct TopLogprob {
  TokenId id = 0;
  float logprob = 0;
  uint32_t rank = 1;  // 1: most likely
};

// Why a choice ended. The wire words are those that every frontend from 0.8 to 1.6 accepts.
enum class FinishReason : uint8_t {
  kNone,           // not finished
  kStop,           // a stop token, an eos token: "stop"
  kLength,         // max_tokens or the end of the context: "length"
  kCancelled,      // "cancelled"
  kContentFilter,  // "content_filter"
  kError,          // told by an error item, never by this word
};

// The word on the wire; empty for kNone and kError.
std::string_view to_string(FinishReason reason);

}  // namespace dyn::llm
