// The codec of a request's body, in llm's words. Thread rules: plain function.
#pragma once

#include "llm/request.h"
#include "wire/control_message.h"

namespace dyn::worker {

inline llm::Codec to_codec(wire::PayloadCodec codec) {
  return codec == wire::PayloadCodec::kMsgpack ? llm::Codec::kMsgpack : llm::Codec::kJson;
}

}  // namespace dyn::worker
