// EventPublisher: a publisher on Dynamo's event plane, of one topic or of several. Subscribers find it through event
// channel records, one a topic, that its owner puts into discovery.
//
//   auto publisher = make_zmq_event_publisher({.publisher_id = random_publisher_id()});
//   if (!publisher) return publisher.error();
//   discovery->put(event_channel_record(scope, "kv-events", **publisher));
//   (*publisher)->publish("kv-events", payload);             // msgpack; the envelope is added
//
// Publishing never blocks and promises nothing: a subscriber that is slow, or not connected yet, misses messages and
// notices by the numbers inside them. Ownership: shared by those who publish. Thread rules: any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "runtime/discovery/discovery.h"
#include "wire/event_records.h"

namespace dyn::runtime {

inline constexpr char kEventChannelsBucket[] = "v1/event_channels";
inline constexpr char kEventSourcesBucket[] = "v1/event_sources";

class EventPublisher {
 public:
  virtual ~EventPublisher() = default;
  [[nodiscard]] virtual uint64_t publisher_id() const = 0;
  [[nodiscard]] virtual const wire::EventTransport& transport() const = 0;
  // False: the message could not be handed to the transport at all.
  virtual bool publish(std::string_view topic, Bytes payload) = 0;
};

// Where a topic's subscribers find the publisher.
Record event_channel_record(const wire::EventScope& scope, std::string_view topic, const EventPublisher& publisher);

struct ZmqPublisherOptions {
  uint64_t publisher_id = 0;
  std::string host;  // address to listen on, an IP literal or a name; empty: net::local_address()
};

// A PUB socket on a free port of its own.
Result<std::shared_ptr<EventPublisher>> make_zmq_event_publisher(const ZmqPublisherOptions& options);

// Random, below 2^53: some stores keep numbers as doubles (Dynamo 1.4 and later).
uint64_t random_publisher_id();

}  // namespace dyn::runtime
