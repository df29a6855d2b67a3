// What travels on the event plane: the envelope around every event message, and the frame that carries it over ZMQ.
//
//   EventEnvelope envelope{.publisher_id = id, .sequence = 0, .published_at_ms = now, .topic = "kv-events",
//                          .payload = payload};
//   append_event_frame(out, envelope);      // the last of a ZMQ message's four frames
//
// Msgpack whatever the request plane's codec is; `payload` is itself msgpack, as a binary value. Facts:
// lib/runtime/src/transports/event_plane of Dynamo 0.9 ... 1.6. Thread rules: plain functions.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/result.h"

namespace dyn::wire {

struct EventEnvelope {
  uint64_t publisher_id = 0;
  uint64_t sequence = 0;         // of this publisher's messages, from 0
  uint64_t published_at_ms = 0;  // Unix time
  std::string_view topic;
  Bytes payload;
};

void encode_event_envelope(Buffer& out, const EventEnvelope& envelope);
// Views of the result point into `in`.
Result<EventEnvelope> decode_event_envelope(Bytes in);

// Frame version 1, the envelope's length (32 bits, big endian), the envelope.
void append_event_frame(Buffer& out, const EventEnvelope& envelope);
Result<EventEnvelope> read_event_frame(Bytes frame);

}  // namespace dyn::wire
