#include "wire/frame.h"

#include <limits>

#include "wire/json_reader.h"
#include "wire/json_writer.h"

namespace dyn::wire {
namespace {

FrameStep need(size_t bytes) {
  return {FrameState::kNeedMore, bytes, {}};
}
FrameStep bad(std::string message) {
  return {FrameState::kError, 0, invalid_argument(std::move(message))};
}

}  // namespace

FrameStep decode_request_frame(Bytes in, const RequestFrameLimits& limits, RequestFrame& frame) {
  // Each length is at a known place once the part before it is there, so a frame that arrives in pieces costs O(1) a
  // call. Sums cannot overflow: path and headers are 16-bit, the payload 32-bit.
  constexpr size_t kLeast = 2 + 1 + 2 + 4;
  size_t at = 0;
  const auto beyond = [&](size_t end) { return end > limits.max_frame_bytes; };
  const auto too_large = [&](size_t bytes) {
    return bad("the message of at least " + std::to_string(bytes) + " bytes is larger than the limit of " +
               std::to_string(limits.max_frame_bytes));
  };

  if (in.size() < 2) return need(kLeast);
  const size_t path_bytes = load_be<uint16_t>(in.data());
  if (path_bytes == 0 || path_bytes > kMaxFramePathBytes) {
    return bad("the path of " + std::to_string(path_bytes) + " bytes is not within 1 to " +
               std::to_string(kMaxFramePathBytes));
  }
  at = 2 + path_bytes;
  if (beyond(at + 2 + 4)) return too_large(at + 2 + 4);
  if (in.size() < at + 2) return need(at + 2 + 4);

  const size_t headers_bytes = load_be<uint16_t>(in.data() + at);
  at += 2 + headers_bytes;
  if (beyond(at + 4)) return too_large(at + 4);
  if (in.size() < at + 4) return need(at + 4);

  const size_t payload_bytes = load_be<uint32_t>(in.data() + at);
  at += 4;
  if (beyond(at + payload_bytes)) return too_large(at + payload_bytes);
  if (in.size() < at + payload_bytes) return need(at + payload_bytes);

  frame.path = as_text(in.subspan(2, path_bytes));
  frame.headers = as_text(in.subspan(2 + path_bytes + 2, headers_bytes));
  frame.payload = in.subspan(at, payload_bytes);
  return {FrameState::kFrame, at + payload_bytes, {}};
}

std::map<std::string, std::string> decode_frame_headers(std::string_view json) {
  std::map<std::string, std::string> headers;
  if (json.empty()) return headers;
  JsonReader in(as_bytes(json));
  in.read_object([&](std::string_view key) {
    if (in.peek() != Kind::kString) return in.skip();
    return in.read(headers[std::string(key)]);
  });
  if (!in.finish()) headers.clear();
  return headers;
}

Result<void> encode_request_frame(Buffer& out, std::string_view path, const std::map<std::string, std::string>& headers,
                                  Bytes payload) {
  if (path.empty() || path.size() > kMaxFramePathBytes) {
    return invalid_argument("a routing path of " + std::to_string(path.size()) + " bytes does not fit a frame");
  }
  if (payload.size() > std::numeric_limits<uint32_t>::max()) {
    return invalid_argument("a payload of " + std::to_string(payload.size()) + " bytes does not fit a frame");
  }
  const size_t before = out.size();
  store_be(out.extend(2), static_cast<uint16_t>(path.size()));
  out.append(path);

  const size_t length_at = out.size();
  out.extend(2);
  JsonWriter json(out);
  json.begin_object();
  for (const auto& [name, value] : headers) json.member(name, value);
  json.end_object();
  const size_t headers_bytes = out.size() - length_at - 2;
  if (headers_bytes > std::numeric_limits<uint16_t>::max()) {
    out.shrink(out.size() - before);
    return invalid_argument("headers of " + std::to_string(headers_bytes) + " bytes do not fit a frame");
  }
  store_be(out.data() + length_at, static_cast<uint16_t>(headers_bytes));

  store_be(out.extend(4), static_cast<uint32_t>(payload.size()));
  out.append(payload);
  return {};
}

void encode_ack(Buffer& out, std::string_view text) {
  store_be(out.extend(4), static_cast<uint32_t>(text.size()));
  out.append(text);
}

FrameStep decode_ack(Bytes in, std::string_view& text, size_t max_bytes) {
  if (in.size() < 4) return need(4);
  const size_t bytes = load_be<uint32_t>(in.data());
  if (bytes > max_bytes) return bad("an acknowledgement of " + std::to_string(bytes) + " bytes");
  if (in.size() - 4 < bytes) return need(4 + bytes);
  text = as_text(in.subspan(4, bytes));
  return {FrameState::kFrame, 4 + bytes, {}};
}

}  // namespace dyn::wire
