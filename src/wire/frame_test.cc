#include "wire/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "wire/call_home.h"
#include "wire/two_part.h"

namespace dyn::wire {
namespace {

using testing::HasSubstr;

std::string request_frame(std::string_view path, const std::map<std::string, std::string>& headers,
                          std::string_view payload) {
  Buffer out;
  EXPECT_TRUE(encode_request_frame(out, path, headers, as_bytes(payload)).ok());
  return std::string(as_text(out.view()));
}

// Gives a decoder every prefix of the input: "need more" with a growing promise that is never too high, then the frame.
template <class Decode>
void expect_incremental(Bytes in, size_t frame_bytes, Decode decode) {
  size_t promised = 0;
  for (size_t size = 0; size < frame_bytes; ++size) {
    // An exact copy, so that a sanitizer sees a read beyond what has arrived.
    const std::vector<std::byte> arrived(in.begin(), in.begin() + static_cast<std::ptrdiff_t>(size));
    const FrameStep step = decode(Bytes(arrived));
    ASSERT_EQ(step.state, FrameState::kNeedMore) << size;
    ASSERT_GT(step.size, size);
    ASSERT_LE(step.size, frame_bytes);
    ASSERT_GE(step.size, promised);
    promised = step.size;
  }
  for (size_t size = frame_bytes; size <= in.size(); ++size) {
    const FrameStep step = decode(in.first(size));
    ASSERT_EQ(step.state, FrameState::kFrame) << size;
    ASSERT_EQ(step.size, frame_bytes);
  }
}

TEST(RequestFrame, RoundTripSplitAnywhere) {
  std::mt19937 rng(2);
  for (int i = 0; i < 50; ++i) {
    const auto pick = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n)(rng); };
    const std::string path(1 + pick(60), 'p');
    std::map<std::string, std::string> headers;
    for (size_t n = pick(3); n > 0; --n) headers["key" + std::to_string(n)] = std::string(pick(20), '"');
    const std::string payload(pick(100), '\0');
    const std::string text = request_frame(path, headers, payload);
    const std::string in = text + "next frame";

    RequestFrame frame;
    expect_incremental(as_bytes(in), text.size(),
                       [&](Bytes arrived) { return decode_request_frame(arrived, {}, frame); });
    EXPECT_EQ(frame.path, path);
    EXPECT_EQ(decode_frame_headers(frame.headers), headers);
    EXPECT_EQ(as_text(frame.payload), payload);
  }
}

TEST(RequestFrame, PathIsOneTo1024Bytes) {
  RequestFrame frame;
  EXPECT_EQ(decode_request_frame(as_bytes(std::string_view("\0\0", 2)), {}, frame).state, FrameState::kError);
  EXPECT_EQ(decode_request_frame(as_bytes("\x04\x01"), {}, frame).state, FrameState::kError);
  EXPECT_EQ(decode_request_frame(as_bytes(request_frame(std::string(1024, 'p'), {}, "x")), {}, frame).state,
            FrameState::kFrame);
  Buffer out;
  EXPECT_FALSE(encode_request_frame(out, "", {}, {}).ok());
  EXPECT_FALSE(encode_request_frame(out, std::string(1025, 'p'), {}, {}).ok());
  EXPECT_FALSE(encode_request_frame(out, "p", {{"k", std::string(70000, 'x')}}, {}).ok());
  EXPECT_TRUE(out.empty());
}

TEST(RequestFrame, ALargeFrameIsRefusedBeforeItArrives) {
  const std::string text = request_frame("path", {}, std::string(100, 'x'));
  RequestFrame frame;
  EXPECT_EQ(decode_request_frame(as_bytes(text), {text.size()}, frame).state, FrameState::kFrame);
  const FrameStep step = decode_request_frame(as_bytes(text).first(text.size() - 100), {text.size() - 1}, frame);
  EXPECT_EQ(step.state, FrameState::kError);
  EXPECT_THAT(step.error.message, HasSubstr("larger than the limit"));

  // A length of 4 GiB less one, with nothing behind it.
  const std::string_view huge("\0\x01p\0\0\xFF\xFF\xFF\xFF", 9);
  EXPECT_EQ(decode_request_frame(as_bytes(huge), {}, frame).state, FrameState::kError);
}

TEST(RequestFrame, HeadersThatAreNoneAreNoError) {
  EXPECT_TRUE(decode_frame_headers("").empty());
  EXPECT_TRUE(decode_frame_headers("{").empty());
  EXPECT_TRUE(decode_frame_headers("[1]").empty());
  EXPECT_TRUE(decode_frame_headers(R"({"a":"b"} x)").empty());
  const std::map<std::string, std::string> one = {{"a", "b"}};
  EXPECT_EQ(decode_frame_headers(R"({"n":1,"a":"b","o":{}})"), one);
}

TEST(Ack, RoundTrip) {
  for (const std::string& text : {std::string(), std::string("Server unavailable: unknown endpoint x/generate")}) {
    Buffer out;
    encode_ack(out, text);
    const size_t size = out.size();
    encode_ack(out, "next");
    std::string_view decoded;
    expect_incremental(out.view(), size, [&](Bytes in) { return decode_ack(in, decoded); });
    EXPECT_EQ(decoded, text);
  }
  Buffer empty;
  encode_ack(empty);
  EXPECT_EQ(as_text(empty.view()), std::string_view("\0\0\0\0", 4));
  std::string_view text;
  EXPECT_EQ(decode_ack(as_bytes("\xFF\xFF\xFF\xFF"), text).state, FrameState::kError);
}

TEST(TwoPart, RoundTripSplitAnywhere) {
  for (const auto& [header, data] : {std::pair("header", "data"), std::pair("", "data"), std::pair("header", ""),
                                     std::pair("", ""), std::pair("h", "d")}) {
    Buffer out;
    encode_two_part(out, as_bytes(header), as_bytes(data));
    const size_t size = out.size();
    EXPECT_TRUE(decode_whole_two_part(out.view()).ok());
    out.append("x");
    TwoPart part;
    expect_incremental(out.view(), size, [&](Bytes in) { return decode_two_part(in, {}, part); });
    EXPECT_EQ(as_text(part.header), header);
    EXPECT_EQ(as_text(part.data), data);
    EXPECT_FALSE(decode_whole_two_part(out.view()).ok());
    EXPECT_FALSE(decode_whole_two_part(out.view().first(size - 1)).ok());
  }
}

TEST(TwoPart, DataWrittenInPlace) {
  Buffer in_place;
  in_place.append("before");
  const size_t mark = begin_two_part_data(in_place);
  in_place.append("da");
  in_place.append("ta");
  end_two_part_data(in_place, mark);
  Buffer copied;
  copied.append("before");
  encode_two_part(copied, {}, as_bytes("data"));
  EXPECT_EQ(as_text(in_place.view()), as_text(copied.view()));
}

std::string prefix(uint64_t header, uint64_t data, uint64_t checksum = 0) {
  std::string text(24, '\0');
  store_be(reinterpret_cast<std::byte*>(text.data()), header);
  store_be(reinterpret_cast<std::byte*>(text.data()) + 8, data);
  store_be(reinterpret_cast<std::byte*>(text.data()) + 16, checksum);
  return text;
}

TEST(TwoPart, LengthsCannotOverflow) {
  const TwoPartLimits limits{.max_header_bytes = UINT64_MAX, .max_message_bytes = 1000};
  TwoPart part;
  for (const auto& [header, data] : {std::pair<uint64_t, uint64_t>(UINT64_MAX, 1),
                                     {1, UINT64_MAX},
                                     {UINT64_MAX, UINT64_MAX},
                                     {UINT64_MAX - 23, 0},
                                     {uint64_t{1} << 63, uint64_t{1} << 63},
                                     {977, 0},
                                     {0, 977},
                                     {500, 477}}) {
    EXPECT_EQ(decode_two_part(as_bytes(prefix(header, data)), limits, part).state, FrameState::kError);
  }
  EXPECT_EQ(decode_two_part(as_bytes(prefix(500, 476)), limits, part).state, FrameState::kNeedMore);
  EXPECT_EQ(decode_two_part(as_bytes(prefix(1 << 20, 0)), {}, part).state, FrameState::kNeedMore);
  EXPECT_EQ(decode_two_part(as_bytes(prefix((1 << 20) + 1, 0)), {}, part).state, FrameState::kError);
  EXPECT_EQ(decode_two_part(as_bytes(prefix(0, 1)), {.max_header_bytes = 1, .max_message_bytes = 1}, part).state,
            FrameState::kError);
}

TEST(TwoPart, TheChecksumIsNotLookedAt) {
  TwoPart part;
  EXPECT_EQ(decode_two_part(as_bytes(prefix(0, 0, 0x1234)), {}, part).state, FrameState::kFrame);
}

TwoPart only_part(const Buffer& out) {
  auto part = decode_whole_two_part(out.view());
  EXPECT_TRUE(part.ok());
  return *part;
}

TEST(CallHome, Handshake) {
  Buffer out;
  encode_handshake(out, "6f1c2a34", "response");
  EXPECT_EQ(as_text(only_part(out).header), R"({"subject":"6f1c2a34","stream_type":"response"})");
  const auto handshake = decode_handshake(only_part(out));
  ASSERT_TRUE(handshake.ok());
  EXPECT_EQ(handshake->subject, "6f1c2a34");
  EXPECT_EQ(handshake->stream_type, "response");
  for (const char* bad : {"{}", "[]", R"({"subject":1})", R"({"subject":"a"} 1)"}) {
    EXPECT_FALSE(decode_handshake({as_bytes(bad), {}}).ok()) << bad;
  }
  EXPECT_FALSE(decode_handshake({as_bytes(R"({"subject":"a"})"), as_bytes("data")}).ok());
}

TEST(CallHome, Prologue) {
  Buffer accepted;
  encode_prologue(accepted);
  EXPECT_EQ(as_text(only_part(accepted).header), R"({"error":null})");
  EXPECT_FALSE(decode_prologue(only_part(accepted))->refused);

  Buffer refused;
  encode_prologue(refused, "out of \"memory\"");
  const auto prologue = decode_prologue(only_part(refused));
  ASSERT_TRUE(prologue.ok());
  EXPECT_TRUE(prologue->refused);
  EXPECT_EQ(prologue->error, "out of \"memory\"");
  EXPECT_FALSE(decode_prologue({as_bytes("{}"), {}})->refused);
  EXPECT_FALSE(decode_prologue({{}, as_bytes("{}")}).ok());
}

TEST(CallHome, ControlWords) {
  for (const ControlWord word : {ControlWord::kStop, ControlWord::kKill, ControlWord::kSentinel}) {
    Buffer out;
    encode_control(out, word);
    EXPECT_EQ(decode_control(only_part(out)), word);
  }
  Buffer stop;
  encode_control(stop, ControlWord::kStop);
  EXPECT_EQ(as_text(stop.view()), prefix(6, 0) + "\"stop\"");
  EXPECT_EQ(decode_control({as_bytes("stop"), {}}), ControlWord::kUnknown);
  EXPECT_EQ(decode_control({{}, {}}), ControlWord::kUnknown);
}

}  // namespace
}  // namespace dyn::wire
