#include "worker/registration.h"

#include <utility>

#include "base/log.h"
#include "wire/records.h"

namespace dyn::worker {

ModelRegistration::ModelRegistration(runtime::Discovery& discovery, ServedModel model)
    : discovery_(discovery), model_(std::move(model)) {}

ModelRegistration::~ModelRegistration() {
  withdraw();
}

Result<void> ModelRegistration::publish(const runtime::EndpointId& endpoint, const runtime::Transport& transport) {
  const uint64_t id = discovery_.instance_id();
  auto card = llm::encode_model_card(model_.card);
  if (!card) return card.error().with_context("model card");

  const wire::InstanceRecord instance{.ns = endpoint.ns,
                                      .component = endpoint.component,
                                      .endpoint = endpoint.name,
                                      .instance_id = id,
                                      .transport_kind = transport.kind,
                                      .transport_address = transport.address,
                                      .device_type = model_.device_type,
                                      .request_plane_codec = model_.request_plane_codec};
  const auto instance_key = wire::instance_key(endpoint.ns, endpoint.component, endpoint.name, id);
  if (auto put = discovery_.put({runtime::kInstancesBucket, instance_key, wire::encode_instance_record(instance)});
      !put) {
    return put.error().with_context("publishing the instance record");
  }
  instance_key_ = instance_key;

  // A card without its instance would list a model that nobody can reach, so it comes second.
  const wire::ModelRecord record{.ns = endpoint.ns,
                                 .component = endpoint.component,
                                 .endpoint = endpoint.name,
                                 .instance_id = id,
                                 .card_json = std::move(*card),
                                 .model_suffix = {}};
  const auto card_key = wire::model_key(endpoint.ns, endpoint.component, endpoint.name, id);
  if (auto put = discovery_.put({runtime::kModelCardsBucket, card_key, wire::encode_model_record(record)}); !put) {
    withdraw();
    return put.error().with_context("publishing the model card");
  }
  card_key_ = card_key;
  DYN_INFO("worker", "model '{}' registered as {}", model_.card.display_name, instance_key);
  return {};
}

void ModelRegistration::withdraw() {
  const auto remove = [&](const char* bucket, std::optional<std::string>& key) {
    if (!key) return;
    if (auto removed = discovery_.remove(bucket, *key); !removed) {
      DYN_WARN("worker", "record {}/{} could not be removed: {}", bucket, *key, removed.error().message);
    }
    key.reset();
  };
  remove(runtime::kInstancesBucket, instance_key_);
  remove(runtime::kModelCardsBucket, card_key_);
}

}  // namespace dyn::worker
