// EventPublisher: one publisher of one topic on Dynamo's event plane. Subscribers find it through the event channel
// record that its owner puts into discovery (wire/event_records.h).
//
//   auto publisher = make_zmq_event_publisher({.topic = "kv-events", .publisher_id = random_publisher_id()});
//   if (!publisher) return publisher.error();
//   discovery->put(channel_record(..., (*publisher)->transport()));
//   (*publisher)->publish(payload);             // msgpack; the envelope is added
//
// Publishing never blocks and promises nothing: a subscriber that is slow, or not connected yet, misses messages and
// notices by the numbers inside them. Ownership: the caller owns it. Thread rules: publish() from one thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
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
  virtual bool publish(Bytes payload) = 0;
};

struct ZmqPublisherOptions {
  std::string topic;
  uint64_t publisher_id = 0;
  std::string host;  // address to listen on, an IP literal or a name; empty: net::local_address()
};

// A PUB socket on a free port of its own.
Result<std::unique_ptr<EventPublisher>> make_zmq_event_publisher(const ZmqPublisherOptions& options);

// Random, below 2^53: some stores keep numbers as doubles (Dynamo 1.4 and later).
uint64_t random_publisher_id();

}  // namespace dyn::runtime
