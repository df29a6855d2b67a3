#include "llm/tokens.h"

namespace dyn::llm {

std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kContentFilter:
      return "content_filter";
    case FinishReason::kNone:
    case FinishReason::kError:
      break;
  }
  return {};
}

}  // namespace dyn::llm
