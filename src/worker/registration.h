// ModelRegistration: makes a served model known: instance record first, then the model card, and the reverse at the
// end.
//
//   ModelRegistration registration(discovery, served_model);
//   auto ok = registration.publish(endpoint, transport);   // after the engine has answered a warm-up request
//   ...
//   registration.withdraw();
//
// The card is a superset that frontends 0.8 ... 1.6 read alike (llm/model_card.h). Ownership: the discovery outlives
// it. Thread rules: control thread only; blocks on I/O.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "llm/model_card.h"
#include "runtime/discovery/discovery.h"
#include "runtime/request_plane/request_plane.h"

namespace dyn::worker {

struct ServedModel {
  llm::ModelCard card;
  std::string device_type;          // "cpu" or "cuda"
  std::string request_plane_codec;  // "msgpack" or "json": what 1.4+ frontends are told to send
};

class ModelRegistration {
 public:
  ModelRegistration(runtime::Discovery& discovery, ServedModel model);
  ~ModelRegistration();

  Result<void> publish(const runtime::EndpointId& endpoint, const runtime::Transport& transport);

  // Removes the instance record, then the card: frontends send nothing new. Idempotent.
  void withdraw();

 private:
  runtime::Discovery& discovery_;
  ServedModel model_;
  std::optional<std::string> instance_key_;
  std::optional<std::string> card_key_;
};

}  // namespace dyn::worker
