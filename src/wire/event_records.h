// What an event publisher writes into discovery: where its events come from, and what state they describe.
//
//   EventScope scope{.ns = "dynamo", .component = "backend", .endpoint = "generate"};
//   store("v1/event_channels", event_channel_key(scope, "kv-events", id),
//         encode_event_channel(scope, "kv-events", id, {"Zmq", "tcp://10.0.0.5:41237"}));
//
// Two forms live side by side, because readers of one do not look at the other's keys: a scope without endpoint is that
// of Dynamo 0.9 ... 1.3, one with an endpoint that of 1.4 and later. Facts: lib/runtime/src/discovery of those
// releases. Thread rules: plain functions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "wire/records.h"

namespace dyn::wire {

struct EventScope {
  std::string ns;
  std::string component;
  std::string endpoint;  // empty: component scope
};

struct EventTransport {
  std::string kind;   // "Zmq", "Nats"
  std::string value;  // "tcp://10.0.0.5:41237"; the prefix of the subjects
};

// Keys below the buckets "v1/event_channels" and "v1/event_sources".
std::string event_channel_key(const EventScope& scope, std::string_view topic, uint64_t publisher_id);
std::string event_source_key(const EventScope& scope, std::string_view topic, uint64_t publisher_id);

std::string encode_event_channel(const EventScope& scope, std::string_view topic, uint64_t publisher_id,
                                 const EventTransport& transport);

// Whose state a publisher's events describe, and whom to ask for what was missed. 1.4 and later; needs an endpoint.
struct EventSource {
  uint64_t publisher_id = 0;
  uint64_t worker_id = 0;
  uint32_t dp_rank = 0;
  InstanceRecord recovery;  // of the recovery endpoint, as it is in discovery
};
std::string encode_event_source(const EventScope& scope, std::string_view topic, const EventSource& source);

}  // namespace dyn::wire
