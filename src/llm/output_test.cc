#include "llm/output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "llm/test_support.h"
#include "wire/json_reader.h"
#include "wire/msgpack_reader.h"

namespace dyn::llm {
namespace {

std::string msgpack_as_json(Bytes packed) {
  wire::MsgpackReader in(packed);
  Buffer json;
  EXPECT_TRUE(in.append_json(json));
  EXPECT_TRUE(in.finish().ok());
  return std::string(as_text(json.view()));
}

std::string json_of(const OutputChunk& chunk) {
  Buffer out;
  encode_chunk(out, Codec::kJson, chunk);
  return std::string(as_text(out.view()));
}

std::string msgpack_of(const OutputChunk& chunk) {
  Buffer out;
  encode_chunk(out, Codec::kMsgpack, chunk);
  return std::string(as_text(out.view()));
}

TEST(EncodeChunk, OneToken) {
  const TokenId tokens[] = {42};
  EXPECT_EQ(json_of({.tokens = tokens}), R"({"data":{"data":{"token_ids":[42]}},"complete_final":false})");
  EXPECT_EQ(msgpack_of({.tokens = tokens}),
            "\x82\xA4"
            "data\x81\xA4"
            "data\x81\xA9"
            "token_ids\x91*\xAE"
            "complete_final\xC2");
}

TEST(EncodeChunk, PromptLogprobs) {
  // Three tokens with two alternatives each: the token's own rank is known where it is one of them.
  const float low = -std::numeric_limits<float>::infinity();
  const TopLogprob entries[] = {{7, -0.5F, 0}, {7, -0.5F, 1}, {9, -1.5F, 2}, {5, -8.0F, 0}, {7, -0.25F, 1},
                                {9, -1.5F, 2}, {6, low, 0},   {0, low, 0},   {0, low, 0}};
  const OutputChunk chunk{.kv_cache_hit = KvCacheHit{4, 0}, .prompt_logprobs = entries, .prompt_top_width = 3};
  const std::string text =
      R"({"data":{"data":{"token_ids":[],"engine_data":{"kv_cache_hit":{"prompt_tokens":4,"reused_tokens":0},)"
      R"("prompt_logprobs":[null,{"7":{"logprob":-0.5,"rank":1},"9":{"logprob":-1.5,"rank":2}},)"
      R"({"5":{"logprob":-8},"7":{"logprob":-0.25,"rank":1},"9":{"logprob":-1.5,"rank":2}},)"
      R"({"6":{"logprob":-9999}}]}}},"complete_final":false})";
  EXPECT_EQ(json_of(chunk), text);
  EXPECT_EQ(nlohmann::json::parse(msgpack_as_json(as_bytes(msgpack_of(chunk)))), nlohmann::json::parse(text));

  // More alternatives than a short MessagePack map holds; the longest numbers.
  std::vector<TopLogprob> many = {{4294967295U, -1.17549435e-38F, 0}};
  for (uint32_t i = 1; i <= 20; ++i) many.push_back({4294967295U - i, -1.17549435e-38F, 4294967295U - i});
  const OutputChunk wide{.prompt_logprobs = many, .prompt_top_width = 21};
  EXPECT_TRUE(nlohmann::json::accept(json_of(wide)));
  for (TopLogprob& entry : many) entry.logprob = -0.5F;
  EXPECT_EQ(msgpack_as_json(as_bytes(msgpack_of(wide))), json_of(wide));
}

TEST(EncodeChunk, NoTokens) {
  EXPECT_EQ(json_of({.finish = FinishReason::kStop}),
            R"({"data":{"data":{"token_ids":[],"finish_reason":"stop"}},"complete_final":false})");
}

TEST(EncodeChunk, Everything) {
  const TokenId tokens[] = {9906, 0};
  const float logprobs[] = {-0.125F, -std::numeric_limits<float>::infinity()};
  const TopLogprob top[] = {{9906, -0.125F, 1}, {7, -2.5F, 2}, {1, -0.5F, 1}, {0, std::nanf(""), 4294967295U}};
  const OutputChunk chunk{.tokens = tokens,
                          .logprobs = logprobs,
                          .top = top,
                          .top_width = 2,
                          .finish = FinishReason::kLength,
                          .stop_token = 65,
                          .index = 1,
                          .usage = Usage{11, 2, 3},
                          .kv_cache_hit = KvCacheHit{11, 3}};
  const std::string text =
      R"({"data":{"data":{"token_ids":[9906,0],"log_probs":[-0.125,-9999],)"
      R"("top_logprobs":[[{"rank":1,"token_id":9906,"token":null,"logprob":-0.125},)"
      R"({"rank":2,"token_id":7,"token":null,"logprob":-2.5}],[{"rank":1,"token_id":1,"token":null,"logprob":-0.5},)"
      R"({"rank":4294967295,"token_id":0,"token":null,"logprob":-9999}]],)"
      R"("finish_reason":"length","stop_reason":65,"index":1,)"
      R"("completion_usage":{"prompt_tokens":11,"completion_tokens":2,"total_tokens":13,)"
      R"("prompt_tokens_details":{"cached_tokens":3}},)"
      R"("engine_data":{"kv_cache_hit":{"prompt_tokens":11,"reused_tokens":3}}}},"complete_final":false})";
  EXPECT_EQ(json_of(chunk), text);
  std::string as_floats = text;  // msgpack keeps floats floats
  for (size_t at = 0; (at = as_floats.find("-9999", at)) != std::string::npos; at += 7) as_floats.insert(at + 5, ".0");
  EXPECT_EQ(msgpack_as_json(as_bytes(msgpack_of(chunk))), as_floats);
}

TEST(EncodeChunk, LogprobsWithoutAlternatives) {
  const TokenId tokens[] = {1, 2};
  const float logprobs[] = {-0.5F, -1.5F};
  EXPECT_EQ(
      json_of({.tokens = tokens, .logprobs = logprobs}),
      R"({"data":{"data":{"token_ids":[1,2],"log_probs":[-0.5,-1.5],"top_logprobs":[[],[]]}},"complete_final":false})");
}

TEST(EncodeChunk, UsageWithoutCacheNumbers) {
  EXPECT_THAT(json_of({.finish = FinishReason::kCancelled, .usage = Usage{4294967295U, 0, std::nullopt}}),
              testing::HasSubstr(R"("total_tokens":4294967295,"prompt_tokens_details":null)"));
}

TEST(EncodeChunk, MatchesTheBytesOfOfficialWorkers) {
  for (const char* version : kGoldenVersions) {
    const std::string captured =
        read_golden_file(std::string("wire/") + version + "/response-0-worker-to-frontend.bin");
    const TokenId token[] = {97};
    for (const Codec codec : {Codec::kJson, Codec::kMsgpack}) {
      const bool is_msgpack = version[0] == '1' && version[2] >= '5';
      Buffer item;
      encode_chunk(item, codec, {.tokens = token});
      EXPECT_EQ(captured.find(as_text(item.view())) != std::string::npos, (codec == Codec::kMsgpack) == is_msgpack);
      const TokenId last[] = {100};
      item.clear();
      encode_chunk(item, codec, {.tokens = last, .finish = FinishReason::kLength, .usage = Usage{52, 4, std::nullopt}});
      EXPECT_EQ(captured.find(as_text(item.view())) != std::string::npos, (codec == Codec::kMsgpack) == is_msgpack)
          << version;
      item.clear();
      encode_complete_final(item, codec);
      EXPECT_EQ(captured.find(as_text(item.view())) != std::string::npos, (codec == Codec::kMsgpack) == is_msgpack);
    }
  }
}

TEST(EncodeChunk, BothCodecsSayTheSame) {
  std::mt19937 rng(3);
  const auto pick = [&](uint32_t n) { return std::uniform_int_distribution<uint32_t>(0, n)(rng); };
  Buffer json;
  Buffer packed;
  for (int i = 0; i < 300; ++i) {
    std::vector<TokenId> tokens(pick(i % 10 == 0 ? 70000 : 20));
    for (TokenId& token : tokens) token = static_cast<TokenId>(rng()) >> pick(31);
    std::vector<float> logprobs(pick(1) ? tokens.size() : 0);
    for (float& logprob : logprobs) logprob = -static_cast<float>(pick(1000)) / 8 - 0.0625F;
    const uint32_t width = logprobs.empty() || tokens.size() > 100 ? 0 : pick(20);
    std::vector<TopLogprob> top(tokens.size() * width);
    for (TopLogprob& one : top)
      one = {static_cast<TokenId>(rng()), -std::ldexp(1.5F, -static_cast<int>(pick(100))), pick(30)};
    OutputChunk chunk{.tokens = tokens, .logprobs = logprobs, .top = top, .top_width = width};
    chunk.finish = static_cast<FinishReason>(pick(5));
    if (pick(1)) chunk.stop_token = pick(100000);
    if (pick(1)) chunk.index = pick(200);
    if (pick(1)) chunk.usage = Usage{pick(100000), pick(100000), pick(100)};
    if (pick(1)) chunk.kv_cache_hit = KvCacheHit{pick(100000), pick(1000)};
    json.clear();
    packed.clear();
    encode_chunk(json, Codec::kJson, chunk);
    encode_chunk(packed, Codec::kMsgpack, chunk);

    // Compared in msgpack, where a float of JSON and one of msgpack are the same double when the float is exact.
    wire::JsonReader in(json.view());
    Buffer from_json;
    ASSERT_TRUE(in.append_msgpack(from_json));
    if (logprobs.empty()) {
      ASSERT_EQ(as_text(from_json.view()), as_text(packed.view()));
    } else {
      wire::JsonReader check(json.view());
      ASSERT_TRUE(check.skip() && check.finish().ok());
      wire::MsgpackReader check_packed(packed.view());
      ASSERT_TRUE(check_packed.skip() && check_packed.finish().ok());
    }
    if (!tokens.empty()) {
      std::vector<TokenId> back;
      wire::MsgpackReader reader(packed.view());
      ASSERT_TRUE(reader.read_object([&](std::string_view key) {
        if (key != "data") return reader.skip();
        return reader.read_object([&](std::string_view) {
          return reader.read_object(
              [&](std::string_view name) { return name == "token_ids" ? reader.read(back) : reader.skip(); });
        });
      }));
      ASSERT_EQ(back, tokens);
    }
  }
}

TEST(EncodeChunk, SteadyStateTakesNoMemory) {
  Buffer out;
  const TokenId tokens[] = {42};
  encode_chunk(out, Codec::kJson, {.tokens = tokens});
  out.consume(out.size());
  const size_t capacity = out.capacity();
  for (int i = 0; i < 1000; ++i) {
    encode_chunk(out, Codec::kJson, {.tokens = tokens});
    out.consume(out.size());
  }
  EXPECT_EQ(out.capacity(), capacity);
}

TEST(EncodeError, TextAndCode) {
  Buffer out;
  encode_error(out, Codec::kJson, {ErrorType::kInvalidArgument, "prompt has 9000 tokens, limit is 8192", 400});
  EXPECT_EQ(
      as_text(out.view()),
      R"({"data":{"event":"error","comment":["{\"message\":\"prompt has 9000 tokens, limit is 8192\",\"code\":400}"],)"
      R"("error":{"error_type":"InvalidArgument",)"
      R"("message":"{\"message\":\"prompt has 9000 tokens, limit is 8192\",\"code\":400}"}},"complete_final":false})");
}

TEST(EncodeError, PlainTextAndBackendType) {
  Buffer json;
  encode_error(json, Codec::kJson, {ErrorType::kEngineShutdown, "engine \"died\""});
  EXPECT_EQ(
      as_text(json.view()),
      R"({"data":{"event":"error","comment":["engine \"died\""],)"
      R"("error":{"error_type":{"Backend":"EngineShutdown"},"message":"engine \"died\""}},"complete_final":false})");
  Buffer packed;
  encode_error(packed, Codec::kMsgpack, {ErrorType::kEngineShutdown, "engine \"died\""});
  EXPECT_EQ(msgpack_as_json(packed.view()), as_text(json.view()));
}

TEST(EncodeError, AnyBytesMakeAValidItem) {
  for (const Codec codec : {Codec::kJson, Codec::kMsgpack}) {
    for (const uint16_t code : {uint16_t{0}, uint16_t{400}}) {
      Buffer out;
      encode_error(out, codec, {ErrorType::kUnknown, "bad \xFF bytes \x01", code});
      if (codec == Codec::kJson) {
        wire::JsonReader in(out.view());
        EXPECT_TRUE(in.skip() && in.finish().ok());
      } else {
        EXPECT_THAT(msgpack_as_json(out.view()), testing::HasSubstr("\"Unknown\""));
      }
    }
  }
}

TEST(EncodeError, FromAnError) {
  const Error bad = invalid_argument("n = 2");
  EXPECT_EQ(to_error_item(bad).type, ErrorType::kInvalidArgument);
  EXPECT_EQ(to_error_item(bad).http_code, 400);
  EXPECT_EQ(to_error_item(bad).message, "n = 2");
  const Error dead{Code::kEngineDead, "dead"};
  EXPECT_EQ(to_error_item(dead).type, ErrorType::kEngineShutdown);
  EXPECT_EQ(to_error_item(dead).http_code, 0);
  const Error full{Code::kOverloaded, "queue full"};
  EXPECT_EQ(to_error_item(full).type, ErrorType::kUnknown);
  EXPECT_EQ(to_error_item(full).http_code, 503);
  const Error internal = internal_error("?");
  EXPECT_EQ(to_error_item(internal).type, ErrorType::kUnknown);
}

TEST(FinishReason, Words) {
  EXPECT_EQ(to_string(FinishReason::kStop), "stop");
  EXPECT_EQ(to_string(FinishReason::kLength), "length");
  EXPECT_EQ(to_string(FinishReason::kCancelled), "cancelled");
  EXPECT_EQ(to_string(FinishReason::kContentFilter), "content_filter");
  EXPECT_EQ(to_string(FinishReason::kNone), "");
  EXPECT_EQ(to_string(FinishReason::kError), "");
}

}  // namespace
}  // namespace dyn::llm
