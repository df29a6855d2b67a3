#include "worker/registration.h"

#include <utility>

#include "base/log.h"
#include "wire/records.h"

namespace dyn::worker {

ModelRegistration::ModelRegistration(runtime::Discovery& discovery, ServedModel model)
    : discovery_(discovery), model_(std::move(model)) {}

ModelRegistration::~ModelRegistration() {
  withdraw_instance();
  withdraw_card();
}

Result<void> ModelRegistration::publish(const runtime::EndpointId& endpoint, const runtime::Transport& transport) {
  const uint64_t id = discovery_.instance_id();
  auto card = llm::encode_model_card(model_.card);
  if (!card) return card.error().with_context("model card");

  const runtime::Record instance = runtime::instance_record(endpoint, transport, id, model_.traits);
  if (auto put = discovery_.put(instance); !put) return put.error().with_context("publishing the instance record");
  instance_key_ = instance.key;

  // A card without its instance would list a model that nobody can reach, so it comes second.
  const wire::ModelRecord record{.ns = endpoint.ns,
                                 .component = endpoint.component,
                                 .endpoint = endpoint.name,
                                 .instance_id = id,
                                 .card_json = std::move(*card),
                                 .model_suffix = {}};
  const auto card_key = wire::model_key(endpoint.ns, endpoint.component, endpoint.name, id);
  if (auto put = discovery_.put({runtime::kModelCardsBucket, card_key, wire::encode_model_record(record)}); !put) {
    withdraw_instance();
    return put.error().with_context("publishing the model card");
  }
  card_key_ = card_key;
  DYN_INFO("worker", "model '{}' registered as {}", model_.card.display_name, instance.key);
  return {};
}

void ModelRegistration::withdraw_instance() {
  remove(runtime::kInstancesBucket, instance_key_);
}

void ModelRegistration::withdraw_card() {
  remove(runtime::kModelCardsBucket, card_key_);
}

void ModelRegistration::remove(const char* bucket, std::optional<std::string>& key) {
  if (!key) return;
  if (auto removed = discovery_.remove(bucket, *key); !removed) {
    DYN_WARN("worker", "record {}/{} could not be removed: {}", bucket, *key, removed.error().message);
  }
  key.reset();
}

}  // namespace dyn::worker
