// The wire decoders on what official releases sent, byte for byte (tests/golden/wire).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "wire/call_home.h"
#include "wire/control_message.h"
#include "wire/frame.h"
#include "wire/json_reader.h"
#include "wire/msgpack_reader.h"
#include "wire/records.h"
#include "wire/two_part.h"

namespace dyn::wire {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

class Golden : public testing::TestWithParam<const char*> {
 protected:
  [[nodiscard]] fs::path folder() const { return fs::path(DYN_SOURCE_DIR) / "tests/golden/wire" / GetParam(); }
  [[nodiscard]] std::string file(const std::string& name) const { return read_file(folder() / name); }
  [[nodiscard]] bool is_msgpack() const { return GetParam()[0] == '1' && GetParam()[2] >= '5'; }

  static std::vector<TwoPart> frames(const std::string& text) {
    std::vector<TwoPart> parts;
    for (Bytes in = as_bytes(text); !in.empty();) {
      TwoPart part;
      const FrameStep step = decode_two_part(in, {}, part);
      EXPECT_EQ(step.state, FrameState::kFrame);
      if (step.state != FrameState::kFrame) break;
      parts.push_back(part);
      in = in.subspan(step.size);
    }
    return parts;
  }

  [[nodiscard]] std::string as_json(Bytes item) const {
    Buffer json;
    if (is_msgpack()) {
      MsgpackReader in(item);
      EXPECT_TRUE(in.append_json(json) && in.finish().ok());
    } else {
      JsonReader in(item);
      EXPECT_TRUE(in.append_json(json) && in.finish().ok());
    }
    return std::string(as_text(json.view()));
  }
};
INSTANTIATE_TEST_SUITE_P(Versions, Golden, testing::Values("0.8.1.post3", "1.0.2", "1.5.1", "1.6.1"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '.', '_');
                           return name;
                         });

TEST_P(Golden, RequestFrames) {
  for (const char* name : {"request-0.bin", "request-1.bin"}) {
    const std::string text = file(name);
    RequestFrame frame;
    for (size_t size = 0; size < text.size(); ++size) {
      ASSERT_EQ(decode_request_frame(as_bytes(text).first(size), {}, frame).state, FrameState::kNeedMore);
    }
    const FrameStep step = decode_request_frame(as_bytes(text), {}, frame);
    ASSERT_EQ(step.state, FrameState::kFrame);
    EXPECT_EQ(step.size, text.size());
    EXPECT_THAT(std::string(frame.path), testing::EndsWith("/generate"));

    const auto headers = decode_frame_headers(frame.headers);
    EXPECT_EQ(headers.at("x-endpoint-path"), frame.path);
    EXPECT_EQ(headers.contains("request-id"), is_msgpack());

    const auto part = decode_whole_two_part(frame.payload);
    ASSERT_TRUE(part.ok());
    const auto control = decode_control_message(part->header);
    ASSERT_TRUE(control.ok()) << control.error().message;
    EXPECT_EQ(control->request_type, "single_in");
    EXPECT_EQ(control->response_type, "many_out");
    EXPECT_EQ(control->payload_codec == PayloadCodec::kMsgpack, is_msgpack());
    EXPECT_EQ(control->names_codec, is_msgpack());
    EXPECT_EQ(control->connection.transport, "tcp_server");
    EXPECT_EQ(control->connection.host, "192.0.2.2");
    EXPECT_GT(control->connection.port, 1023);
    EXPECT_EQ(control->connection.context, control->id);
    if (headers.contains("request-id")) {
      EXPECT_EQ(headers.at("request-id"), control->id);
    }
    EXPECT_THAT(as_json(part->data), testing::StartsWith(R"({"model":"tiny","token_ids":[)"));

    // What we write as a caller is what the official caller wrote.
    Buffer message;
    encode_control_message(message, *control);
    EXPECT_EQ(as_text(message.view()), as_text(part->header));
    Buffer payload;
    encode_two_part(payload, part->header, part->data);
    EXPECT_EQ(as_text(payload.view()), as_text(frame.payload));
  }
}

TEST_P(Golden, Acks) {
  const std::string text = file("acks-0.bin");
  Buffer two;
  encode_ack(two);
  encode_ack(two);
  EXPECT_EQ(as_text(two.view()), text);
}

TEST_P(Golden, AFullResponse) {
  const std::string text = file("response-0-worker-to-frontend.bin");
  const std::vector<TwoPart> parts = frames(text);
  ASSERT_EQ(parts.size(), 8U);
  const auto handshake = decode_handshake(parts[0]);
  ASSERT_TRUE(handshake.ok());
  EXPECT_EQ(handshake->stream_type, "response");
  const auto prologue = decode_prologue(parts[1]);
  ASSERT_TRUE(prologue.ok());
  EXPECT_FALSE(prologue->refused);
  EXPECT_EQ(as_json(parts[2].data), R"({"data":{"data":{"token_ids":[97]}},"complete_final":false})");
  EXPECT_EQ(as_json(parts[6].data), R"({"complete_final":true})");
  EXPECT_EQ(decode_control(parts[7]), ControlWord::kSentinel);

  Buffer again;
  encode_handshake(again, handshake->subject, handshake->stream_type);
  encode_prologue(again);
  for (size_t i = 2; i < 7; ++i) {
    const size_t mark = begin_two_part_data(again);
    again.append(parts[i].data);
    end_two_part_data(again, mark);
  }
  encode_control(again, ControlWord::kSentinel);
  EXPECT_EQ(as_text(again.view()), text);
}

TEST_P(Golden, ADisconnectedClientIsAKill) {
  const std::string text = file("response-1-frontend-to-worker.bin");
  const std::vector<TwoPart> parts = frames(text);
  ASSERT_EQ(parts.size(), 1U);
  EXPECT_EQ(decode_control(parts[0]), ControlWord::kKill);
  EXPECT_GT(frames(file("response-1-worker-to-frontend.bin")).size(), 2U);
}

TEST_P(Golden, InstanceRecord) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder() / "records/v1/instances")) {
    ++files;
    const std::string text = read_file(entry.path());
    const auto record = decode_instance_record(as_bytes(text));
    ASSERT_TRUE(record.ok()) << record.error().message;
    EXPECT_EQ(encode_instance_record(*record), text);
    const std::string key = instance_key(record->ns, record->component, record->endpoint, record->instance_id);
    EXPECT_EQ(encode_file_name(key), entry.path().filename().string());
    EXPECT_EQ(*decode_file_name(entry.path().filename().string()), key);
    EXPECT_EQ(record->request_plane_codec, is_msgpack() ? "msgpack" : "");
  }
  EXPECT_EQ(files, 1U);
}

TEST_P(Golden, ModelRecord) {
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder() / "records/v1/mdc")) {
    ++files;
    const std::string text = read_file(entry.path());
    const auto record = decode_model_record(as_bytes(text));
    ASSERT_TRUE(record.ok()) << record.error().message;
    EXPECT_EQ(encode_model_record(*record), text);
    EXPECT_EQ(encode_file_name(model_key(record->ns, record->component, record->endpoint, record->instance_id)),
              entry.path().filename().string());
  }
  EXPECT_EQ(files, 1U);
}

}  // namespace
}  // namespace dyn::wire
