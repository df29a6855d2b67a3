#include "app/bench_stream_protocol.h"

#include <fcntl.h>

#include <charconv>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/posix.h"
#include "wire/frame.h"
#include "wire/records.h"

namespace dyn::app::bench {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kSubjectPrefix = "00000000-0000-4000-8000-";
constexpr std::string_view kJsonTokens = "\"token_ids\":[";
constexpr std::string_view kMsgpackTokens = "\xa9token_ids";
constexpr std::string_view kJsonFinal = "{\"complete_final\":true}";
constexpr std::string_view kMsgpackFinal =
    "\x81\xae"
    "complete_final\xc3";

// One unsigned msgpack integer at the front of `bytes`; false when it is something else or cut short.
bool read_msgpack_uint(Bytes bytes, uint32_t& value, size_t& length) {
  if (bytes.empty()) return false;
  const auto tag = static_cast<uint8_t>(bytes[0]);
  if (tag < 0x80) {
    value = tag;
    length = 1;
    return true;
  }
  switch (tag) {
    case 0xcc:
      length = 2;
      break;
    case 0xcd:
      length = 3;
      break;
    case 0xce:
      length = 5;
      break;
    case 0xcf:
      length = 9;
      break;
    default:
      return false;
  }
  if (bytes.size() < length) return false;
  uint64_t wide = 0;
  for (size_t i = 1; i < length; ++i) wide = (wide << 8) | static_cast<uint8_t>(bytes[i]);
  value = static_cast<uint32_t>(wide);
  return true;
}

void note_token(ItemView& view, uint32_t token, size_t at, size_t length) {
  if (view.token_count++ == 0) {
    view.first_token = token;
    view.token_at = at;
    view.token_bytes = length;
  }
  view.last_token = token;
}

void scan_json(std::string_view text, ItemView& view) {
  view.final = text == kJsonFinal;
  const size_t key = text.find(kJsonTokens);
  if (key == std::string_view::npos) return;
  const char* at = text.data() + key + kJsonTokens.size();
  const char* end = text.data() + text.size();
  while (at < end && *at != ']') {
    uint32_t token = 0;
    const auto [next, error] = std::from_chars(at, end, token);
    if (error != std::errc()) return;
    note_token(view, token, static_cast<size_t>(at - text.data()), static_cast<size_t>(next - at));
    at = next;
    while (at < end && (*at == ',' || *at == ' ')) ++at;
  }
}

void scan_msgpack(std::string_view text, ItemView& view) {
  view.final = text == kMsgpackFinal;
  const size_t key = text.find(kMsgpackTokens);
  if (key == std::string_view::npos) return;
  size_t at = key + kMsgpackTokens.size();
  if (at >= text.size()) return;
  const auto tag = static_cast<uint8_t>(text[at]);
  const Bytes bytes = as_bytes(text);
  size_t count = 0;
  if (tag >= 0x90 && tag <= 0x9f) {
    count = tag & 0x0F;
    at += 1;
  } else if (tag == 0xdc && text.size() - at >= 3) {
    count = load_be<uint16_t>(bytes.data() + at + 1);
    at += 3;
  } else {
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    uint32_t token = 0;
    size_t length = 0;
    if (!read_msgpack_uint(bytes.subspan(at), token, length)) return;
    note_token(view, token, at, length);
    at += length;
  }
}

Json request_body(const Call& call) {
  Json prompt = Json::array();
  for (uint32_t i = 0; i < call.prompt_tokens; ++i) prompt.push_back(100 + (call.stream * 7 + i) % 5000);
  return Json{{"model", call.model},
              {"token_ids", std::move(prompt)},
              {"stop_conditions",
               {{"max_tokens", call.max_tokens},
                {"stop", nullptr},
                {"stop_token_ids_hidden", Json::array()},
                {"min_tokens", nullptr},
                {"ignore_eos", true}}},
              {"sampling_options", {{"n", nullptr}, {"temperature", 0.0}}},
              {"output_options", {{"logprobs", nullptr}, {"prompt_logprobs", nullptr}}},
              {"eos_token_ids", Json::array()},
              {"mdc_sum", nullptr},
              {"annotations", Json::array()},
              {"routing", Json::object()}};
}

}  // namespace

Result<Target> parse_target(std::string_view address) {
  if (address.starts_with("tcp://")) address.remove_prefix(6);
  const size_t slash = address.find('/');
  const size_t colon = address.substr(0, slash).rfind(':');
  if (slash == std::string_view::npos || colon == std::string_view::npos || slash + 1 == address.size())
    return invalid_argument("'" + std::string(address) + "' is not host:port/path");
  Target target;
  target.host = address.substr(0, colon);
  target.path = address.substr(slash + 1);
  const std::string_view port = address.substr(colon + 1, slash - colon - 1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), target.port);
  if (error != std::errc() || end != port.data() + port.size() || target.port == 0)
    return invalid_argument("'" + std::string(address) + "' has no port");
  return target;
}

std::vector<Target> read_instances(const std::string& root, const InstanceFilter& filter) {
  namespace fs = std::filesystem;
  constexpr size_t kMaxRecordBytes = 1'048'576;
  std::vector<Target> targets;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(root) / "v1" / "instances", error)) {
    if (entry.path().filename().string().starts_with(".tmp_")) continue;
    auto file = open_fd(entry.path(), O_RDONLY | O_CLOEXEC);
    if (!file) continue;
    const auto text = read_all(file->get(), kMaxRecordBytes);
    if (!text) continue;
    const auto record = wire::decode_instance_record(as_bytes(*text));
    if (!record || record->transport_kind != "tcp" || record->endpoint != filter.endpoint) continue;
    if (!filter.ns.empty() && record->ns != filter.ns) continue;
    if (!filter.component.empty() && record->component != filter.component) continue;
    auto target = parse_target(record->transport_address);
    if (!target) continue;
    if (record->request_plane_codec == "msgpack") target->codec = Codec::kMsgpack;
    targets.push_back(std::move(*target));
  }
  return targets;
}

std::string subject_of(unsigned stream) {
  const std::string digits = std::to_string(stream);
  return std::string(kSubjectPrefix) + std::string(12 - digits.size(), '0') + digits;
}

Result<unsigned> stream_of_subject(std::string_view subject) {
  unsigned stream = 0;
  if (subject.starts_with(kSubjectPrefix)) {
    const std::string_view digits = subject.substr(kSubjectPrefix.size());
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), stream);
    if (error == std::errc() && digits.size() == 12 && end == digits.data() + digits.size()) return stream;
  }
  return invalid_argument("handshake for an unknown subject '" + std::string(subject.substr(0, 100)) + "'");
}

Result<void> append_request(Buffer& out, const Target& target, const Call& call) {
  const std::string id = "bench-" + std::to_string(call.stream);
  const bool msgpack = target.codec == Codec::kMsgpack;
  const Json info{
      {"address", call.call_home}, {"subject", subject_of(call.stream)}, {"context", id}, {"stream_type", "response"}};
  const Json control{{"id", id},
                     {"request_type", "single_in"},
                     {"response_type", "many_out"},
                     {"payload_codec", msgpack ? "msgpack" : "json"},
                     {"connection_info", {{"transport", "tcp_server"}, {"info", info.dump()}}}};
  const Json body = request_body(call);
  std::string data;
  if (msgpack) {
    Json::to_msgpack(body, data);
  } else {
    data = body.dump();
  }
  Buffer payload;
  wire::encode_two_part(payload, as_bytes(control.dump()), as_bytes(data));
  return wire::encode_request_frame(out, target.path, {{"x-endpoint-path", target.path}, {"request-id", id}},
                                    payload.view());
}

ItemView scan_item(Bytes item, Codec codec) {
  ItemView view;
  if (codec == Codec::kJson) {
    scan_json(as_text(item), view);
  } else {
    scan_msgpack(as_text(item), view);
  }
  return view;
}

Result<FrameTemplate> FrameTemplate::from_item(Bytes item, Codec codec) {
  const ItemView view = scan_item(item, codec);
  if (view.token_count != 1) return invalid_argument("the item to copy does not hold exactly one token");
  FrameTemplate result;
  result.codec_ = codec;
  const std::string_view text = as_text(item);
  result.head_ = text.substr(0, view.token_at);
  result.tail_ = text.substr(view.token_at + view.token_bytes);
  return result;
}

size_t FrameTemplate::render(std::byte* out, uint32_t token) const {
  std::byte* at = out + wire::kTwoPartPrefixBytes;
  std::memcpy(at, head_.data(), head_.size());
  at += head_.size();
  if (codec_ == Codec::kJson) {
    char* digits = reinterpret_cast<char*>(at);
    at = reinterpret_cast<std::byte*>(std::to_chars(digits, digits + 10, token).ptr);
  } else {
    *at = std::byte{0xce};
    store_be<uint32_t>(at + 1, token);
    at += 5;
  }
  std::memcpy(at, tail_.data(), tail_.size());
  at += tail_.size();
  store_be<uint64_t>(out, 0);
  store_be<uint64_t>(out + 8, static_cast<uint64_t>(at - out) - wire::kTwoPartPrefixBytes);
  store_be<uint64_t>(out + 16, 0);
  return static_cast<size_t>(at - out);
}

uint32_t stamp_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint32_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count()) % kStampModulus;
}

}  // namespace dyn::app::bench
