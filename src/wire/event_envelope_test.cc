#include "wire/event_envelope.h"

#include <gtest/gtest.h>

#include <string>

#include "wire/msgpack_writer.h"

namespace dyn::wire {
namespace {

constexpr uint64_t kPublisher = 0x694d9a2bc3e4f501;

EventEnvelope envelope_of(Bytes payload) {
  return {.publisher_id = kPublisher,
          .sequence = 0,
          .published_at_ms = 0x0000019b76daa800,
          .topic = "kv-events",
          .payload = payload};
}

TEST(EventEnvelope, IsWhatDynamoWrites) {
  const std::string payload(138, 'x');
  Buffer out;
  append_event_frame(out, envelope_of(as_bytes(payload)));
  const std::string head(
      "\x01\x00\x00\x00\xdb"
      "\x85\xacpublisher_id\xcf\x69\x4d\x9a\x2b\xc3\xe4\xf5\x01\xa8sequence\x00"
      "\xacpublished_at\xcf\x00\x00\x01\x9b\x76\xda\xa8\x00\xa5topic\xa9kv-events\xa7payload\xc4\x8a",
      5 + 219 - 138);
  EXPECT_EQ(as_text(out.view()), head + payload);
}

TEST(EventEnvelope, ReadsWhatItWrote) {
  Buffer out;
  append_event_frame(out, envelope_of(as_bytes("payload")));
  const auto read = read_event_frame(out.view());
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->publisher_id, kPublisher);
  EXPECT_EQ(read->topic, "kv-events");
  EXPECT_EQ(as_text(read->payload), "payload");
}

TEST(EventEnvelope, EveryTruncationIsAnError) {
  Buffer out;
  append_event_frame(out, envelope_of(as_bytes("payload")));
  for (size_t size = 0; size < out.size(); ++size) EXPECT_FALSE(read_event_frame(out.view().first(size))) << size;
}

TEST(EventEnvelope, AnotherVersionAndAMissingPayloadAreErrors) {
  Buffer out;
  append_event_frame(out, envelope_of(as_bytes("payload")));
  out.data()[0] = std::byte{2};
  EXPECT_FALSE(read_event_frame(out.view()));

  Buffer empty;
  pack_map(empty, 1);
  pack_str(empty, "publisher_id");
  pack_uint(empty, 1);
  EXPECT_FALSE(decode_event_envelope(empty.view()));
}

}  // namespace
}  // namespace dyn::wire
