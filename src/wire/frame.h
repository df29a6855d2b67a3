// The frame of the TCP request plane, and its acknowledgement. The decoder is incremental: call it on what has arrived.
//
//   RequestFrame frame;
//   FrameStep step = decode_request_frame(in.view(), limits, frame);
//   if (step.state == FrameState::kNeedMore) in.reserve(step.size - in.size() + kReadPadding);  // then read on
//   if (step.state == FrameState::kFrame)   { handle(frame); encode_ack(out); in.consume(step.size); }
//   if (step.state == FrameState::kError)   { encode_ack(out, "Read error: " + step.error.message); close after
//   sending; }
//
// Layout, all integers big-endian (lib/runtime/src/pipeline/network/codec.rs, unchanged from 0.8 to 1.6):
//
//   u16 path length | path | u16 headers length | headers (JSON object of strings) | u32 payload length | payload
//
// The payload is one two-part message (wire/two_part.h). Every frame is answered by exactly one acknowledgement, in
// order: u32 length | text, empty when the request was taken.
//
// Ownership: a decoded frame points into the input. Thread rules: plain functions on the caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/result.h"

namespace dyn::wire {

enum class FrameState : uint8_t {
  kNeedMore,  // no complete frame yet
  kFrame,     // one complete frame at the front of the input
  kError,     // the bytes are no frame; the connection cannot go on
};

// What an incremental decoder says about the front of its input.
struct FrameStep {
  FrameState state = FrameState::kNeedMore;
  // kFrame: bytes of the frame. kNeedMore: a lower bound of the whole frame's bytes, always more than there are now and
  // never more than the limit. kError: nothing.
  size_t size = 0;
  Error error;  // kError only
};

struct RequestFrame {
  std::string_view path;     // routing path: "694d9b7a3c1e5f02/generate"; not checked for UTF-8
  std::string_view headers;  // JSON text as it came, see decode_frame_headers()
  Bytes payload;
};

struct RequestFrameLimits {
  size_t max_frame_bytes = 32 * 1024 * 1024;  // DYN_TCP_MAX_MESSAGE_SIZE, the whole frame
};

inline constexpr size_t kMaxFramePathBytes = 1024;  // and at least one

FrameStep decode_request_frame(Bytes in, const RequestFrameLimits& limits, RequestFrame& frame);

// The headers as a map. Empty or malformed headers are no headers, as for official workers; members that are not
// strings are left out.
std::map<std::string, std::string> decode_frame_headers(std::string_view json);

// Appends a frame (the caller's side of the plane). kInvalidArgument when a part does not fit its length field.
Result<void> encode_request_frame(Buffer& out, std::string_view path, const std::map<std::string, std::string>& headers,
                                  Bytes payload);

// Appends an acknowledgement; an empty text means "taken". Callers up to 1.2 do not look at the text.
void encode_ack(Buffer& out, std::string_view text = {});

// The caller's side: the text of the acknowledgement at the front of the input. A text above `max_bytes` is an error.
FrameStep decode_ack(Bytes in, std::string_view& text, size_t max_bytes = 64 * 1024);

}  // namespace dyn::wire
