#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/event_plane/event_plane.h"
#include "runtime/event_plane/test_subscriber.h"
#include "wire/event_envelope.h"

namespace dyn::runtime {
namespace {

TEST(ZmqEventPublisher, SendsFourFramesThatNameTheirPublisher) {
  auto publisher = make_zmq_event_publisher({.publisher_id = 0x0102030405060708, .host = "127.0.0.1"});
  ASSERT_TRUE(publisher) << publisher.error().message;
  EXPECT_EQ((*publisher)->transport().kind, "Zmq");
  testing::Subscriber subscriber((*publisher)->transport().value);
  // A subscriber sees nothing before its subscription has arrived, and nobody says when that is.
  std::vector<std::string> parts;
  uint64_t sent = 0;
  while (parts.empty() && sent < 200) {
    ASSERT_TRUE((*publisher)->publish("kv-events", as_bytes("payload")));
    ++sent;
    parts = subscriber.receive();
  }
  ASSERT_EQ(parts.size(), 4U);
  EXPECT_EQ(parts[0], "kv-events");
  EXPECT_EQ(parts[1], std::string("\x01\x02\x03\x04\x05\x06\x07\x08", 8));
  const auto envelope = wire::read_event_frame(as_bytes(parts[3]));
  ASSERT_TRUE(envelope) << envelope.error().message;
  EXPECT_EQ(envelope->publisher_id, 0x0102030405060708U);
  EXPECT_EQ(envelope->topic, "kv-events");
  EXPECT_EQ(as_text(envelope->payload), "payload");
  EXPECT_EQ(load_be<uint64_t>(as_bytes(parts[2]).data()), envelope->sequence);
  EXPECT_GT(envelope->published_at_ms, 1'600'000'000'000U);

  ASSERT_TRUE((*publisher)->publish("kv-events", as_bytes("next")));
  parts.clear();
  for (int tries = 0; parts.empty() && tries < 400; ++tries) parts = subscriber.receive();
  ASSERT_EQ(parts.size(), 4U);
  const auto next = wire::read_event_frame(as_bytes(parts[3]));
  ASSERT_TRUE(next);
  EXPECT_GT(next->sequence, envelope->sequence);
}

TEST(ZmqEventPublisher, EveryTopicCountsForItself) {
  auto publisher = make_zmq_event_publisher({.publisher_id = 1, .host = "127.0.0.1"});
  ASSERT_TRUE(publisher);
  testing::Subscriber subscriber((*publisher)->transport().value);
  std::vector<std::string> parts;
  for (uint64_t sent = 0; parts.empty() && sent < 200; ++sent) {
    (*publisher)->publish("kv_metrics", as_bytes("load"));
    (*publisher)->publish("kv-events", as_bytes("event"));
    parts = subscriber.receive();
    if (!parts.empty()) {
      EXPECT_EQ(parts[0], "kv-events");  // the only topic that was subscribed to
      EXPECT_LE(load_be<uint64_t>(as_bytes(parts[2]).data()), sent);
    }
  }
  EXPECT_FALSE(parts.empty());
}

TEST(ZmqEventPublisher, NobodyListeningIsNoError) {
  auto publisher = make_zmq_event_publisher({.publisher_id = 1, .host = "127.0.0.1"});
  ASSERT_TRUE(publisher);
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE((*publisher)->publish("kv-events", as_bytes("payload")));
}

TEST(ZmqEventPublisher, AnAddressThatIsNotOursIsAnError) {
  const auto publisher = make_zmq_event_publisher({.publisher_id = 1, .host = "192.0.2.1"});
  ASSERT_FALSE(publisher);
  EXPECT_NE(publisher.error().message.find("192.0.2.1"), std::string::npos);
}

TEST(ZmqEventPublisher, IdsFitIntoADouble) {
  for (int i = 0; i < 1000; ++i) EXPECT_LT(random_publisher_id(), uint64_t{1} << 53);
}

}  // namespace
}  // namespace dyn::runtime
