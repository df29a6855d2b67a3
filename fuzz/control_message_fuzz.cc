// The control message: JSON with a JSON document in one of its strings.
#include "fuzz.h"
#include "wire/control_message.h"

using namespace dyn;
using fuzz::expect;

DYN_FUZZ_TARGET(Bytes in) {
  const auto message = wire::decode_control_message(in);
  if (!message || message->connection.transport != "tcp_server") return;
  expect(!message->id.empty() && message->connection.port != 0 && !message->connection.subject.empty());

  // What was understood survives being written and read.
  Buffer out;
  wire::encode_control_message(out, *message);
  if (out.size() > wire::kMaxControlMessageBytes) return;
  const auto again = wire::decode_control_message(out.view());
  expect(again.ok());
  expect(again->id == message->id && again->connection.host == message->connection.host &&
         again->connection.port == message->connection.port && again->metadata == message->metadata);
}
