#include "wire/call_home.h"

#include "wire/json_reader.h"
#include "wire/json_writer.h"

namespace dyn::wire {
namespace {

Result<void> check_header_only(const TwoPart& part, std::string_view what) {
  if (part.header.empty() || !part.data.empty())
    return invalid_argument(std::string(what) + " has to be a header only");
  return {};
}

}  // namespace

void encode_handshake(Buffer& out, std::string_view subject, std::string_view stream_type) {
  Buffer header;
  JsonWriter json(header);
  json.begin_object();
  json.member("subject", subject);
  json.member("stream_type", stream_type);
  json.end_object();
  encode_two_part(out, header.view(), {});
}

void encode_prologue(Buffer& out) {
  encode_two_part_header(out, R"({"error":null})");
}

void encode_prologue(Buffer& out, std::string_view error) {
  Buffer header;
  JsonWriter json(header);
  json.begin_object();
  json.member("error", error);
  json.end_object();
  encode_two_part(out, header.view(), {});
}

void encode_control(Buffer& out, ControlWord word) {
  switch (word) {
    case ControlWord::kStop:
      encode_two_part_header(out, R"("stop")");
      break;
    case ControlWord::kKill:
      encode_two_part_header(out, R"("kill")");
      break;
    case ControlWord::kSentinel:
      encode_two_part_header(out, R"("sentinel")");
      break;
    case ControlWord::kUnknown:
      break;
  }
}

ControlWord decode_control(const TwoPart& part) {
  const std::string_view text = as_text(part.header);
  if (text == R"("stop")") return ControlWord::kStop;
  if (text == R"("kill")") return ControlWord::kKill;
  if (text == R"("sentinel")") return ControlWord::kSentinel;
  return ControlWord::kUnknown;
}

Result<Handshake> decode_handshake(const TwoPart& part) {
  if (auto checked = check_header_only(part, "the handshake"); !checked) return checked.error();
  Handshake handshake;
  JsonReader in(part.header);
  in.read_object([&](std::string_view key) {
    if (key == "subject") return in.read(handshake.subject);
    if (key == "stream_type") return in.read(handshake.stream_type);
    return in.skip();
  });
  if (auto done = in.finish(); !done) return done.error().with_context("handshake");
  if (handshake.subject.empty()) return invalid_argument("handshake: no subject");
  return handshake;
}

Result<Prologue> decode_prologue(const TwoPart& part) {
  if (auto checked = check_header_only(part, "the prologue"); !checked) return checked.error();
  Prologue prologue;
  JsonReader in(part.header);
  in.read_object([&](std::string_view key) {
    if (key != "error") return in.skip();
    prologue.refused = in.peek() != Kind::kNull;
    return in.read_unless_null(prologue.error);
  });
  if (auto done = in.finish(); !done) return done.error().with_context("prologue");
  return prologue;
}

}  // namespace dyn::wire
