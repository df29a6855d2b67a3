// AggregatedHandler: prefill and decode in one worker, the default role.
//
// Decodes the request on the net loop that received it, checks every option (RequestPolicy), opens its stream at the
// dispatcher and submits it to the engine. Whatever is wrong with the request becomes an error item of its stream,
// which frontends turn into a 4xx; the process is never affected. Thread rules: see RequestHandler.
#pragma once

#include "worker/handler.h"

namespace dyn::worker {

class AggregatedHandler final : public RequestHandler {
 public:
  explicit AggregatedHandler(HandlerContext context) : context_(std::move(context)) {}
  void handle(runtime::IncomingRequest request, std::shared_ptr<runtime::ResponseStream> stream) override;

 private:
  HandlerContext context_;
};

}  // namespace dyn::worker
