// ModelRegistration: makes a served model known: instance record first, then the model card, and the reverse at the
// end.
//
//   ModelRegistration registration(discovery, served_model);
//   auto ok = registration.publish(endpoint, transport);   // after the engine has answered a warm-up request
//   ...
//   registration.withdraw_instance();      // frontends send nothing new
//   registration.withdraw_card();
//
// The card is a superset that frontends 0.8 ... 1.6 read alike (llm/model_card.h). Ownership: the discovery outlives
// it. Thread rules: control thread only; blocks on I/O.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "llm/model_card.h"
#include "runtime/discovery/discovery.h"
#include "runtime/instance.h"
#include "runtime/request_plane/request_plane.h"

namespace dyn::worker {

struct ServedModel {
  llm::ModelCard card;
  runtime::InstanceTraits traits;  // device, and the codec that frontends since 1.4 are asked for
};

class ModelRegistration {
 public:
  ModelRegistration(runtime::Discovery& discovery, ServedModel model);
  ~ModelRegistration();

  Result<void> publish(const runtime::EndpointId& endpoint, const runtime::Transport& transport);

  // Each removes its record; idempotent. The instance goes first: a listed model without instances gets no requests.
  void withdraw_instance();
  void withdraw_card();

 private:
  void remove(const char* bucket, std::optional<std::string>& key);

  runtime::Discovery& discovery_;
  ServedModel model_;
  std::optional<std::string> instance_key_;
  std::optional<std::string> card_key_;
};

}  // namespace dyn::worker
