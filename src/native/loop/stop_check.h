// Stop conditions of one request, applied to one more token of its answer.
//
//   StopCheck check = check_stop(sequence, token);   // before the token is appended
//   if (check.emit) ...; if (check.finish != FinishReason::kNone) ...
//
// In this order: stop tokens (not before min_tokens), then max_tokens and the end of the context, which max_length
// joins. A hidden stop token is no part of the answer, a visible one is its last token. Pure; no thread rules.
#pragma once

#include <algorithm>

#include "native/sched/sequence.h"

namespace dyn::native {

struct StopCheck {
  bool emit = true;  // the token belongs to the answer
  llm::FinishReason finish = llm::FinishReason::kNone;
  bool stop_token = false;  // the token ended it
};

inline StopCheck check_stop(const Sequence& sequence, TokenId token) {
  if (sequence.num_generated() >= sequence.min_tokens && !sequence.stop_tokens.empty()) {
    const auto begin = sequence.stop_tokens.begin();
    const auto found = std::find(begin, sequence.stop_tokens.end(), token);
    if (found != sequence.stop_tokens.end()) {
      const bool hidden = found - begin < sequence.num_hidden_stop_tokens;
      return {.emit = !hidden, .finish = llm::FinishReason::kStop, .stop_token = true};
    }
  }
  if (sequence.tokens.size() + 1 >= sequence.max_length) return {.finish = llm::FinishReason::kLength};
  return {};
}

}  // namespace dyn::native
