// The two-part message: payload of a request frame, and every frame on a response connection. Incremental decoder.
//
//   TwoPart part;
//   FrameStep step = decode_two_part(in.view(), limits, part);   // states as in wire/frame.h
//   if (step.state == FrameState::kFrame) { ...; in.consume(step.size); }
//
//   size_t mark = begin_two_part_data(out);   // an item written in place, without a copy
//   encode_chunk(out, ...);
//   end_two_part_data(out, mark);
//
// Layout (lib/runtime/src/pipeline/network/codec/two_part.rs): u64 header length | u64 data length | u64 checksum |
// header | data, big-endian. The checksum is written as 0 and never verified, as in official release builds.
//
// Which part carries what: request = control message | body; handshake, prologue and control frames = header only;
// items = data only.
// Ownership: a decoded message points into the input. Thread rules: plain functions on the caller's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/buffer.h"
#include "base/bytes.h"
#include "wire/frame.h"

namespace dyn::wire {

struct TwoPart {
  Bytes header;
  Bytes data;
};

struct TwoPartLimits {
  uint64_t max_header_bytes = 1024 * 1024;
  uint64_t max_message_bytes = 32 * 1024 * 1024;  // prefix, header and data together
};

inline constexpr size_t kTwoPartPrefixBytes = 24;

FrameStep decode_two_part(Bytes in, const TwoPartLimits& limits, TwoPart& part);

// A complete message in memory, nothing behind it: the payload of a request frame.
Result<TwoPart> decode_whole_two_part(Bytes in, const TwoPartLimits& limits = {});

void encode_two_part(Buffer& out, Bytes header, Bytes data);

// Header-only messages: handshake, prologue, control frames.
inline void encode_two_part_header(Buffer& out, std::string_view header) {
  encode_two_part(out, as_bytes(header), {});
}

// A data-only message whose data is appended between the two calls. The mark is a distance from the buffer's front, so
// nothing may be consumed in between.
inline size_t begin_two_part_data(Buffer& out) {
  const size_t mark = out.size();
  std::memset(out.extend(kTwoPartPrefixBytes), 0, kTwoPartPrefixBytes);
  return mark;
}
inline void end_two_part_data(Buffer& out, size_t mark) {
  store_be<uint64_t>(out.data() + mark + 8, out.size() - mark - kTwoPartPrefixBytes);
}

}  // namespace dyn::wire
