#include "wire/event_envelope.h"

#include "wire/msgpack_reader.h"
#include "wire/msgpack_writer.h"

namespace dyn::wire {
namespace {

constexpr std::byte kFrameVersion{1};
constexpr size_t kFrameHead = 5;  // version and length

}  // namespace

void encode_event_envelope(Buffer& out, const EventEnvelope& envelope) {
  pack_map(out, 5);
  pack_str(out, "publisher_id");
  pack_uint(out, envelope.publisher_id);
  pack_str(out, "sequence");
  pack_uint(out, envelope.sequence);
  pack_str(out, "published_at");
  pack_uint(out, envelope.published_at_ms);
  pack_str(out, "topic");
  pack_str(out, envelope.topic);
  pack_str(out, "payload");
  pack_bin(out, envelope.payload);
}

Result<EventEnvelope> decode_event_envelope(Bytes in) {
  EventEnvelope envelope;
  bool has_publisher = false;
  bool has_payload = false;
  MsgpackReader reader(in);
  reader.read_object([&](std::string_view key) {
    if (key == "publisher_id") return has_publisher = reader.read(envelope.publisher_id);
    if (key == "sequence") return reader.read(envelope.sequence);
    if (key == "published_at") return reader.read(envelope.published_at_ms);
    if (key == "topic") return reader.read(envelope.topic);
    if (key == "payload") return has_payload = reader.read(envelope.payload);
    return reader.skip();
  });
  if (auto done = reader.finish(); !done) return done.error().with_context("event envelope");
  if (!has_publisher || !has_payload) return invalid_argument("event envelope: publisher_id or payload is missing");
  return envelope;
}

void append_event_frame(Buffer& out, const EventEnvelope& envelope) {
  const size_t begin = out.size();
  out.extend(kFrameHead);
  encode_event_envelope(out, envelope);
  std::byte* head = out.data() + begin;
  head[0] = kFrameVersion;
  store_be(head + 1, static_cast<uint32_t>(out.size() - begin - kFrameHead));
}

Result<EventEnvelope> read_event_frame(Bytes frame) {
  if (frame.size() < kFrameHead || frame[0] != kFrameVersion)
    return invalid_argument("event frame: no frame of version 1");
  if (load_be<uint32_t>(frame.data() + 1) != frame.size() - kFrameHead) {
    return invalid_argument("event frame: its length is not that of the envelope");
  }
  return decode_event_envelope(frame.subspan(kFrameHead));
}

}  // namespace dyn::wire
