#include "wire/event_records.h"

#include "base/ids.h"
#include "wire/json_writer.h"

namespace dyn::wire {
namespace {

void write_endpoint(JsonWriter& json, const EventScope& scope) {
  json.begin_object();
  json.member("namespace", scope.ns);
  json.member("component", scope.component);
  json.member("name", scope.endpoint);
  json.end_object();
}

void write_scope(JsonWriter& json, const EventScope& scope) {
  json.key("scope");
  json.begin_object();
  json.member("kind", "endpoint");
  json.key("endpoint");
  write_endpoint(json, scope);
  json.end_object();
}

std::string scoped_key(const EventScope& scope, std::string_view topic, uint64_t publisher_id) {
  return "namespace/" + encode_key_segment(scope.ns) + "/component/" + encode_key_segment(scope.component) +
         "/endpoint/" + encode_key_segment(scope.endpoint) + "/topic/" + encode_key_segment(topic) + '/' +
         to_hex(publisher_id);
}

}  // namespace

std::string event_channel_key(const EventScope& scope, std::string_view topic, uint64_t publisher_id) {
  if (!scope.endpoint.empty()) return scoped_key(scope, topic, publisher_id);
  return scope.ns + '/' + scope.component + '/' + std::string(topic) + '/' + to_hex(publisher_id);
}

std::string event_source_key(const EventScope& scope, std::string_view topic, uint64_t publisher_id) {
  return scoped_key(scope, topic, publisher_id);
}

std::string encode_event_channel(const EventScope& scope, std::string_view topic, uint64_t publisher_id,
                                 const EventTransport& transport) {
  Buffer out;
  JsonWriter json(out);
  json.begin_object();
  json.member("type", "EventChannel");
  if (scope.endpoint.empty()) {
    json.member("namespace", scope.ns);
    json.member("component", scope.component);
  } else {
    write_scope(json, scope);
  }
  json.member("topic", topic);
  json.member("instance_id", publisher_id);
  json.key("transport");
  json.begin_object();
  json.member("kind", transport.kind);
  json.key("config");
  json.begin_object();
  json.member(transport.kind == "Nats" ? "subject_prefix" : "endpoint", transport.value);
  json.end_object();
  json.end_object();
  json.end_object();
  return std::string(as_text(out.view()));
}

std::string encode_event_source(const EventScope& scope, std::string_view topic, const EventSource& source) {
  Buffer out;
  JsonWriter json(out);
  json.begin_object();
  json.member("type", "EventSource");
  write_scope(json, scope);
  json.member("topic", topic);
  json.member("publisher_id", source.publisher_id);
  json.key("metadata");
  json.begin_object();
  json.key("kv_state_endpoint");
  write_endpoint(json, scope);
  json.key("worker");
  json.begin_object();
  json.member("worker_id", source.worker_id);
  json.member("dp_rank", source.dp_rank);
  json.end_object();
  json.member("publisher_id", source.publisher_id);
  json.key("recovery_target");
  json.raw(encode_instance(source.recovery));
  json.end_object();
  json.end_object();
  return std::string(as_text(out.view()));
}

}  // namespace dyn::wire
