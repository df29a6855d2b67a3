#include "wire/records.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "wire/control_message.h"

namespace dyn::wire {
namespace {

using testing::HasSubstr;

constexpr uint64_t kId = 0x694D9B7A3C1E5F02;

TEST(Records, InstanceOf15) {
  const InstanceRecord record{.ns = "dynamo",
                              .component = "backend",
                              .endpoint = "generate",
                              .instance_id = kId,
                              .transport_kind = "tcp",
                              .transport_address = "10.0.0.21:40123/694d9b7a3c1e5f02/generate",
                              .device_type = "cuda",
                              .request_plane_codec = "json"};
  const std::string text = encode_instance_record(record);
  EXPECT_EQ(text,
            R"({"type":"Endpoint","component":"backend","endpoint":"generate","namespace":"dynamo",)"
            R"("instance_id":7587891896486092546,"transport":{"tcp":"10.0.0.21:40123/694d9b7a3c1e5f02/generate"},)"
            R"("device_type":"cuda","request_plane_codec":"json"})");
  const auto decoded = decode_instance_record(as_bytes(text));
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(encode_instance_record(*decoded), text);
}

TEST(Records, RefusesWhatIsNoInstance) {
  for (
      const char* bad :
      {"", "[]", "{}", R"({"type":"Model"})", R"({"type":"Endpoint","namespace":"a","component":"b","endpoint":"c"})",
       R"({"type":"Endpoint","namespace":"a","component":"b","endpoint":"c","instance_id":-1,"transport":{"tcp":"x"}})",
       R"({"type":"Endpoint","namespace":"a","component":"b","endpoint":"c","instance_id":1,"transport":{}})"}) {
    EXPECT_FALSE(decode_instance_record(as_bytes(bad)).ok()) << bad;
  }
}

TEST(Records, ModelEnvelope) {
  const ModelRecord record{.ns = "dynamo",
                           .component = "tensorrt_llm",
                           .endpoint = "generate",
                           .instance_id = UINT64_MAX,
                           .card_json = R"({"display_name":"tiny","n":1})",
                           .model_suffix = "my_lora"};
  const std::string text = encode_model_record(record);
  EXPECT_EQ(
      text,
      R"({"type":"Model","namespace":"dynamo","component":"tensorrt_llm","endpoint":"generate",)"
      R"("instance_id":18446744073709551615,"card_json":{"display_name":"tiny","n":1},"model_suffix":"my_lora"})");
  const auto decoded = decode_model_record(as_bytes(text));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(encode_model_record(*decoded), text);
}

TEST(Records, KeysAndFileNames) {
  EXPECT_EQ(instance_key("dynamo", "my-backend_1", "generate", kId), "dynamo/my-backend_1/generate/694d9b7a3c1e5f02");
  EXPECT_EQ(instance_key("a", "b", "c", 0x1F), "a/b/c/1f");
  EXPECT_EQ(model_key("a", "b", "c", 1, "my_lora"), "a/b/c/1/my_lora");
  EXPECT_EQ(encode_file_name("dynamo/my-backend_1/generate/694d9b7a3c1e5f02"),
            "dynamo%2Fmy%2Dbackend%5F1%2Fgenerate%2F694d9b7a3c1e5f02");
  EXPECT_EQ(encode_file_name("a.b%c\xFF"), "a%2Eb%25c%FF");
  EXPECT_EQ(encode_key_segment("a.b-c_d/e"), "a%2Eb-c_d%2Fe");

  std::string all;
  for (int c = 0; c < 256; ++c) all += static_cast<char>(c);
  EXPECT_EQ(*decode_file_name(encode_file_name(all)), all);
  EXPECT_EQ(*decode_file_name("a%2fb"), "a/b");
  for (const char* bad : {"%", "a%2", "%2", "%G0", "%0G"}) EXPECT_FALSE(decode_file_name(bad).ok()) << bad;
}

TEST(Records, Slugs) {
  EXPECT_EQ(slugify("Qwen/Qwen3-0.6B"), "qwen_qwen3-0_6b");
  EXPECT_EQ(slugify("__x"), "x");
  EXPECT_EQ(slugify("\xC3\xA9t\xC3\xA9"), "t_");
  EXPECT_EQ(slugify("___"), "");
  EXPECT_EQ(slugify_unique("Qwen/Qwen3-0.6B"), "qwen_qwen3_0_6b_8ee6210e");
  EXPECT_EQ(slugify_unique("my-lora"), "my_lora_a2e1fff2");
}

constexpr char kControl[] =
    R"({"id":"b6c0","request_type":"single_in","response_type":"many_out","payload_codec":"msgpack",)"
    R"("connection_info":{"transport":"tcp_server","info":"{\"address\":\"10.0.0.7:41235\",\"subject\":\"6f1c\",)"
    R"(\"context\":\"b6c0\",\"stream_type\":\"response\"}"},"metadata":{"tenant":"a"}})";

TEST(ControlMessage, RoundTrip) {
  const auto message = decode_control_message(as_bytes(kControl));
  ASSERT_TRUE(message.ok()) << message.error().message;
  EXPECT_EQ(message->id, "b6c0");
  EXPECT_EQ(message->request_type, "single_in");
  EXPECT_EQ(message->payload_codec, PayloadCodec::kMsgpack);
  EXPECT_TRUE(message->names_codec);
  EXPECT_EQ(message->connection.host, "10.0.0.7");
  EXPECT_EQ(message->connection.port, 41235);
  EXPECT_EQ(message->connection.subject, "6f1c");
  EXPECT_EQ(message->metadata.at("tenant"), "a");
  Buffer again;
  encode_control_message(again, *message);
  EXPECT_EQ(as_text(again.view()), kControl);
}

std::string with(std::string_view what, std::string_view replacement) {
  std::string text = kControl;
  const size_t at = text.find(what);
  EXPECT_NE(at, std::string::npos) << what;
  return text.replace(at, what.size(), replacement);
}

TEST(ControlMessage, OldCallersNameNoCodec) {
  const auto message = decode_control_message(as_bytes(with(R"("payload_codec":"msgpack",)", "")));
  ASSERT_TRUE(message.ok());
  EXPECT_EQ(message->payload_codec, PayloadCodec::kJson);
  EXPECT_FALSE(message->names_codec);
}

TEST(ControlMessage, Ipv6WithAndWithoutBrackets) {
  for (const char* address : {"fe80::1:41235", "[fe80::1]:41235"}) {
    const auto message = decode_control_message(as_bytes(with("10.0.0.7:41235", address)));
    ASSERT_TRUE(message.ok()) << message.error().message;
    EXPECT_EQ(message->connection.host, "fe80::1");
    EXPECT_EQ(message->connection.port, 41235);
  }
}

TEST(ControlMessage, AnotherTransportIsLeftToTheCaller) {
  const auto message = decode_control_message(
      as_bytes(R"({"id":"a","connection_info":{"transport":"quic-response","info":"{\"version\":3}"}})"));
  ASSERT_TRUE(message.ok()) << message.error().message;
  EXPECT_EQ(message->connection.transport, "quic-response");
}

TEST(ControlMessage, Refusals) {
  const auto error = [](const std::string& text) {
    const auto message = decode_control_message(as_bytes(text));
    return message.ok() ? "" : message.error().message;
  };
  EXPECT_THAT(error(with(R"("id":"b6c0",)", "")), HasSubstr("no id"));
  EXPECT_THAT(error(with("msgpack", "cbor")), HasSubstr("payload_codec: unknown codec 'cbor'"));
  EXPECT_THAT(error(with("\\\"context\\\":\\\"b6c0", "\\\"context\\\":\\\"other")), HasSubstr("context"));
  EXPECT_THAT(error(with("\\\"stream_type\\\":\\\"response", "\\\"stream_type\\\":\\\"request")),
              HasSubstr("response stream"));
  EXPECT_THAT(error(with("\\\"subject\\\":\\\"6f1c\\\",", "")), HasSubstr("no subject"));
  for (const char* address : {"", "10.0.0.7", ":41235", "10.0.0.7:", "10.0.0.7:0", "10.0.0.7:65536", "10.0.0.7:1x"}) {
    EXPECT_THAT(error(with("10.0.0.7:41235", address)), HasSubstr("connection_info.info: ")) << address;
  }
  EXPECT_THAT(error(with(R"("tenant":"a")", R"("tenant":1)")), HasSubstr("metadata.tenant: expected a string"));
  EXPECT_THAT(error("{\"id\":\"" + std::string(kMaxControlMessageBytes, 'x') + "\"}"), HasSubstr("the limit is"));
  EXPECT_THAT(error("[]"), HasSubstr("expected an object"));
}

}  // namespace
}  // namespace dyn::wire
