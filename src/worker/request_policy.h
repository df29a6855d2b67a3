// RequestPolicy: from what a client asked to what an engine is given. Every option is either honoured or refused by its
// name; nothing is dropped silently.
//
//   RequestPolicy policy(engine.caps(), {.served_model_names = {"tiny"}});
//   auto request = policy.to_engine(decoded, id);
//   if (!request) return answer_400(request.error().message);   // "n: 2 choices are not supported ..."
//
// Options that the frontend itself serves (stop strings, detokenisation, annotations) pass without effect here.
// Several choices are for frontends that keep them apart (1.5+). They differ by their seeds; greedy ones are equal.
// Defaults follow the TensorRT-LLM component: greedy when none of temperature, top_p, top_k, min_p is given, and
// max_tokens is the rest of the context. Thread rules: immutable after construction, safe from any thread.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "llm/request.h"

namespace dyn::worker {

struct PolicyOptions {
  std::vector<std::string> served_model_names;  // empty: the name is not checked
};

class RequestPolicy {
 public:
  RequestPolicy(engine::Caps caps, PolicyOptions options);

  // Errors are kInvalidArgument (a 400 of this request) or kUnsupported (also a 400: this worker cannot do it); the
  // message begins with the name of the option. A result with max_tokens 0 asks for no token at all: no engine is
  // needed.
  [[nodiscard]] Result<engine::Request> to_engine(llm::Request request, engine::RequestId id) const;

  [[nodiscard]] const engine::Caps& caps() const { return caps_; }

 private:
  [[nodiscard]] Result<void> check_served(const llm::Request& request) const;
  [[nodiscard]] Result<void> check_prompt(const llm::Request& request) const;

  engine::Caps caps_;
  PolicyOptions options_;
};

}  // namespace dyn::worker
