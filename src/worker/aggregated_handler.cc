#include "worker/aggregated_handler.h"

#include <utility>

#include "base/log.h"
#include "worker/payload_codec.h"

namespace dyn::worker {

void AggregatedHandler::handle(runtime::IncomingRequest incoming, std::shared_ptr<runtime::ResponseStream> stream) {
  DYN_DEBUG("worker", "AggregatedHandler Request ID: {}", incoming.control.id);
  Dispatcher& dispatcher = context_.dispatcher;
  OpenRequest open{.codec = to_codec(incoming.control.payload_codec), .request_id = std::move(incoming.control.id)};

  auto decoded = llm::decode_request(incoming.payload, open.codec, {}, wire::Padding::kPresent);
  if (!decoded) {
    dispatcher.reject(dispatcher.open(std::move(stream), std::move(open)), decoded.error());
    return;
  }
  open.user_stop_ids = decoded->stop.stop_token_ids;
  open.user_stop_ids.insert(open.user_stop_ids.end(), decoded->stop.stop_token_ids_visible.begin(),
                            decoded->stop.stop_token_ids_visible.end());
  const auto id = dispatcher.open(std::move(stream), std::move(open));

  auto request = context_.policy.to_engine(std::move(*decoded), id);
  if (!request) {
    dispatcher.reject(id, request.error());
    return;
  }
  if (request->max_tokens == 0) {
    dispatcher.finish_empty(id, static_cast<uint32_t>(request->token_ids.size()), request->num_choices);
    return;
  }
  if (auto submitted = context_.engine.submit(std::move(*request)); !submitted) {
    dispatcher.reject(id, submitted.error());
  }
}

}  // namespace dyn::worker
