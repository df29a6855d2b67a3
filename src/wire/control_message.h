// The control message of a request (always JSON): who asks, in which codec, and where to call back.
//
// Facts: lib/runtime/src/pipeline/network of Dynamo 0.8 ... 1.6. Unknown fields are ignored.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/buffer.h"
#include "base/bytes.h"
#include "base/result.h"

namespace dyn::wire {

enum class PayloadCodec : uint8_t { kJson, kMsgpack };

// Where the response stream is dialled: connection_info with its inner JSON document taken apart.
struct ConnectionInfo {
  std::string transport;  // "tcp_server"; anything else cannot be served here
  std::string host;       // IP literal without brackets
  uint16_t port = 0;
  std::string subject;      // the pending stream; echoed in the handshake
  std::string context;      // must equal the control message's id
  std::string stream_type;  // "response"
};

struct ControlMessage {
  std::string id;             // opaque; the same id may be alive twice, `subject` is unique
  std::string request_type;   // "single_in" or "many_in"
  std::string response_type;  // "many_out"
  PayloadCodec payload_codec = PayloadCodec::kJson;
  bool names_codec = false;  // payload_codec was written: the caller is 1.3 or newer
  ConnectionInfo connection;
  std::map<std::string, std::string> metadata;
};

inline constexpr size_t kMaxControlMessageBytes = 128 * 1024;

// Errors: kInvalidArgument for anything an official worker would drop as well: malformed JSON, a missing id or subject,
// a context other than the id. A transport other than "tcp_server" is no error; its `info` is left unread, so that the
// caller can be told which transport is served here.
Result<ControlMessage> decode_control_message(Bytes json);

// The caller's side. An IPv6 host is written without brackets, as official callers do.
void encode_control_message(Buffer& out, const ControlMessage& message);

}  // namespace dyn::wire
