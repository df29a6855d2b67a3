#include "wire/control_message.h"

#include <charconv>

#include "wire/json_reader.h"
#include "wire/json_writer.h"

namespace dyn::wire {
namespace {

bool read_address(Reader& in, ConnectionInfo& info) {
  std::string_view address;
  if (!in.read(address)) return false;
  // Callers up to 1.0 write IPv6 without brackets: the port is behind the last colon.
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos) return in.fail("no port in '" + std::string(address.substr(0, 64)) + "'");
  std::string_view host = address.substr(0, colon);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const std::string_view port = address.substr(colon + 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), info.port);
  if (error != std::errc() || end != port.data() + port.size() || info.port == 0 || host.empty()) {
    return in.fail("'" + std::string(address.substr(0, 64)) + "' is not <ip>:<port>");
  }
  info.host = host;
  return true;
}

// The document inside the string `connection_info.info` of a TCP caller.
Result<void> decode_info(std::string_view json, ConnectionInfo& info) {
  JsonReader in(as_bytes(json));
  in.read_object([&](std::string_view key) {
    if (key == "address") return read_address(in, info);
    if (key == "subject") return in.read(info.subject);
    if (key == "context") return in.read(info.context);
    if (key == "stream_type") return in.read(info.stream_type);
    return in.skip();
  });
  if (auto done = in.finish(); !done) return done.error();
  if (info.host.empty()) return invalid_argument("no address");
  if (info.subject.empty()) return invalid_argument("no subject");
  return {};
}

bool read_metadata(Reader& in, std::map<std::string, std::string>& metadata) {
  if (in.peek() == Kind::kNull) return in.skip();
  return in.read_object([&](std::string_view key) { return in.read(metadata[std::string(key)]); });
}

bool read_codec(Reader& in, ControlMessage& message) {
  if (in.peek() == Kind::kNull) return in.skip();
  std::string_view codec;
  if (!in.read(codec)) return false;
  message.names_codec = true;
  if (codec == "json") {
    message.payload_codec = PayloadCodec::kJson;
  } else if (codec == "msgpack") {
    message.payload_codec = PayloadCodec::kMsgpack;
  } else {
    return in.fail("unknown codec '" + std::string(codec.substr(0, 64)) + "'");
  }
  return true;
}

Result<ControlMessage> decode(Bytes json) {
  if (json.size() > kMaxControlMessageBytes) {
    return invalid_argument(std::to_string(json.size()) + " bytes, the limit is " +
                            std::to_string(kMaxControlMessageBytes));
  }
  ControlMessage message;
  ConnectionInfo& connection = message.connection;
  std::string info;
  JsonReader in(json);
  in.read_object([&](std::string_view key) {
    if (key == "id") return in.read(message.id);
    if (key == "request_type") return in.read(message.request_type);
    if (key == "response_type") return in.read(message.response_type);
    if (key == "payload_codec") return read_codec(in, message);
    if (key == "metadata") return read_metadata(in, message.metadata);
    if (key != "connection_info") return in.skip();
    return in.read_object([&](std::string_view name) {
      if (name == "transport") return in.read(connection.transport);
      if (name == "info") return in.read(info);
      return in.skip();
    });
  });
  if (auto done = in.finish(); !done) return done.error();
  if (message.id.empty()) return invalid_argument("no id");
  if (connection.transport.empty()) return invalid_argument("no connection_info.transport");
  if (connection.transport != "tcp_server") return message;

  if (auto done = decode_info(info, connection); !done) return done.error().with_context("connection_info.info");
  if (connection.context != message.id) return invalid_argument("connection_info.info: the context is not the id");
  if (connection.stream_type != "response") return invalid_argument("connection_info.info: not a response stream");
  return message;
}

}  // namespace

Result<ControlMessage> decode_control_message(Bytes json) {
  auto message = decode(json);
  if (!message) return message.error().with_context("control message");
  return message;
}

void encode_control_message(Buffer& out, const ControlMessage& message) {
  const ConnectionInfo& connection = message.connection;
  Buffer info;
  JsonWriter inner(info);
  inner.begin_object();
  inner.member("address", connection.host + ":" + std::to_string(connection.port));
  inner.member("subject", connection.subject);
  inner.member("context", connection.context);
  inner.member("stream_type", connection.stream_type);
  inner.end_object();

  JsonWriter json(out);
  json.begin_object();
  json.member("id", message.id);
  json.member("request_type", message.request_type);
  json.member("response_type", message.response_type);
  if (message.names_codec) {
    json.member("payload_codec", message.payload_codec == PayloadCodec::kMsgpack ? "msgpack" : "json");
  }
  json.key("connection_info");
  json.begin_object();
  json.member("transport", connection.transport);
  json.member("info", as_text(info.view()));
  json.end_object();
  if (!message.metadata.empty()) {
    json.key("metadata");
    json.begin_object();
    for (const auto& [name, value] : message.metadata) json.member(name, value);
    json.end_object();
  }
  json.end_object();
}

}  // namespace dyn::wire
