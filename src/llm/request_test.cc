#include "llm/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "wire/json_reader.h"
#include "wire/msgpack_writer.h"

namespace dyn::llm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class BothCodecs : public testing::TestWithParam<Codec> {
 protected:
  static Result<Request> decode(std::string_view json, const RequestLimits& limits = {}) {
    if (GetParam() == Codec::kJson) return decode_request(as_bytes(json), Codec::kJson, limits);
    wire::JsonReader in(as_bytes(json));
    Buffer packed;
    EXPECT_TRUE(in.append_msgpack(packed)) << json;
    return decode_request(packed.view(), Codec::kMsgpack, limits);
  }
  static Request ok(std::string_view json) {
    auto request = decode(json);
    EXPECT_TRUE(request.ok()) << json << ": " << (request.ok() ? "" : request.error().message);
    return request.ok() ? *request : Request{};
  }
  static std::string error(std::string_view json, const RequestLimits& limits = {}) {
    const auto request = decode(json, limits);
    EXPECT_FALSE(request.ok()) << json;
    if (request.ok()) return {};
    EXPECT_EQ(request.error().code, Code::kInvalidArgument);
    return request.error().message;
  }
};
INSTANTIATE_TEST_SUITE_P(Codecs, BothCodecs, testing::Values(Codec::kJson, Codec::kMsgpack),
                         [](const auto& info) { return info.param == Codec::kJson ? "json" : "msgpack"; });

TEST_P(BothCodecs, Everything) {
  const Request r = ok(R"({
    "model":"tiny","token_ids":[1,200,70000],
    "stop_conditions":{"max_tokens":32,"min_tokens":2,"stop":["\n\n","x"],"stop_token_ids":[5],
      "stop_token_ids_visible":[6],"stop_token_ids_hidden":[7,8],"ignore_eos":true,"max_thinking_tokens":9},
    "sampling_options":{"n":2,"best_of":3,"presence_penalty":0.5,"frequency_penalty":-0.5,"repetition_penalty":1.25,
      "temperature":0.75,"top_p":1,"top_k":-1,"min_p":0.125,"use_beam_search":false,"length_penalty":2.0,
      "seed":-9223372036854775808,"include_stop_str_in_output":true,"guided_decoding":{"regex":"[0-9]+","backend":"xgrammar"}},
    "output_options":{"logprobs":0,"prompt_logprobs":1,"skip_special_tokens":false,"formatted_prompt":true,
      "return_tokens_as_token_ids":true,"no_stop_trim":true},
    "eos_token_ids":[257],"mdc_sum":"abc","annotations":["a","b:1"],
    "routing":{"dp_rank":3,"priority":-2,"lora_name":"adapter","cache_salt":"tenant","backend_instance_id":18446744073709551615,
      "priority_jump":2.5},
    "router_config_override":{"overlap_score_weight":0.0},"require_reasoning":true,"_HEALTH_CHECK":true,
    "extra_args":{"nvext":{"cache_salt":"other"}},"request_timestamp_ms":1.5,"never_heard_of":[{"x":null}]})");
  EXPECT_EQ(r.model, "tiny");
  EXPECT_THAT(r.token_ids, ElementsAre(1, 200, 70000));
  EXPECT_EQ(r.stop.max_tokens, 32U);
  EXPECT_EQ(r.stop.min_tokens, 2U);
  EXPECT_THAT(r.stop.stop, ElementsAre("\n\n", "x"));
  EXPECT_THAT(r.stop.stop_token_ids, ElementsAre(5));
  EXPECT_THAT(r.stop.stop_token_ids_visible, ElementsAre(6));
  EXPECT_THAT(r.stop.stop_token_ids_hidden, ElementsAre(7, 8));
  EXPECT_TRUE(r.stop.ignore_eos);
  EXPECT_EQ(r.stop.max_thinking_tokens, 9U);
  EXPECT_EQ(r.sampling.n, 2U);
  EXPECT_EQ(r.sampling.best_of, 3U);
  EXPECT_EQ(r.sampling.presence_penalty, 0.5);
  EXPECT_EQ(r.sampling.frequency_penalty, -0.5);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.25);
  EXPECT_EQ(r.sampling.temperature, 0.75);
  EXPECT_EQ(r.sampling.top_p, 1.0);
  EXPECT_EQ(r.sampling.top_k, -1);
  EXPECT_EQ(r.sampling.min_p, 0.125);
  EXPECT_EQ(r.sampling.use_beam_search, false);
  EXPECT_EQ(r.sampling.length_penalty, 2.0);
  EXPECT_EQ(r.sampling.seed, INT64_MIN);
  EXPECT_EQ(r.sampling.include_stop_str_in_output, true);
  ASSERT_TRUE(r.sampling.guided_decoding.has_value());
  EXPECT_EQ(r.sampling.guided_decoding->kind, "regex");
  EXPECT_EQ(r.sampling.guided_decoding->text, "[0-9]+");
  EXPECT_EQ(r.sampling.guided_decoding->backend, "xgrammar");
  EXPECT_EQ(r.output.logprobs, 0U);
  EXPECT_EQ(r.output.prompt_logprobs, 1U);
  EXPECT_EQ(r.output.skip_special_tokens, false);
  EXPECT_EQ(r.output.formatted_prompt, true);
  EXPECT_EQ(r.output.return_tokens_as_token_ids, true);
  EXPECT_TRUE(r.keeps_choices_apart);
  EXPECT_TRUE(r.output.no_stop_trim);
  EXPECT_THAT(r.eos_token_ids, ElementsAre(257));
  EXPECT_THAT(r.annotations, ElementsAre("a", "b:1"));
  EXPECT_EQ(r.routing.dp_rank, 3U);
  EXPECT_EQ(r.routing.priority, -2);
  EXPECT_EQ(r.routing.lora_name, "adapter");
  EXPECT_EQ(r.routing.cache_salt, "tenant");
  EXPECT_TRUE(r.require_reasoning);
  EXPECT_TRUE(r.is_health_check);
  EXPECT_FALSE(r.has_multi_modal_data);
}

TEST_P(BothCodecs, OnlyTokenIdsAreNeeded) {
  const Request r = ok(R"({"token_ids":[1]})");
  EXPECT_THAT(r.token_ids, ElementsAre(1));
  EXPECT_FALSE(r.stop.max_tokens.has_value());
  EXPECT_FALSE(r.sampling.temperature.has_value());
  EXPECT_FALSE(r.output.logprobs.has_value());
  EXPECT_THAT(error("{}"), HasSubstr("token_ids: missing"));
  EXPECT_THAT(error(R"({"token_ids":null})"), HasSubstr("token_ids: missing"));
}

TEST_P(BothCodecs, NullIsAbsent) {
  const Request r = ok(R"({"token_ids":[1],"model":null,"stop_conditions":{"max_tokens":null,"stop":null,
    "stop_token_ids_hidden":null,"ignore_eos":null},"sampling_options":{"temperature":null,"seed":null,"guided_decoding":null,
    "top_k":null},"output_options":null,"eos_token_ids":null,"annotations":null,"routing":null,"extra_args":null,
    "multi_modal_data":null,"_HEALTH_CHECK":null,"require_reasoning":null,"max_tokens":null})");
  EXPECT_FALSE(r.stop.max_tokens.has_value());
  EXPECT_FALSE(r.sampling.seed.has_value());
  EXPECT_FALSE(r.sampling.guided_decoding.has_value());
  EXPECT_THAT(r.eos_token_ids, IsEmpty());
  EXPECT_FALSE(r.has_multi_modal_data);
  EXPECT_FALSE(r.is_health_check);
}

TEST_P(BothCodecs, ErrorsNameTheMember) {
  const auto in = [](std::string_view member) { return R"({"token_ids":[1],)" + std::string(member) + "}"; };
  EXPECT_THAT(error(R"({"token_ids":[1,2,-3]})"), HasSubstr("token_ids[2]: "));
  EXPECT_THAT(error(R"({"token_ids":[1,4294967296]})"), HasSubstr("token_ids[1]: "));
  EXPECT_THAT(error(R"({"token_ids":["1"]})"), HasSubstr("token_ids[0]: "));
  EXPECT_THAT(error(R"({"token_ids":[1.5]})"), HasSubstr("token_ids[0]: "));
  EXPECT_THAT(error(R"({"token_ids":"text"})"), HasSubstr("token_ids: expected a list, got a string"));
  EXPECT_THAT(error(in(R"("stop_conditions":{"max_tokens":-1})")), HasSubstr("stop_conditions.max_tokens: "));
  EXPECT_THAT(error(in(R"("stop_conditions":{"max_tokens":"4"})")), HasSubstr("stop_conditions.max_tokens: "));
  EXPECT_THAT(error(in(R"("stop_conditions":{"stop":"x"})")), HasSubstr("stop_conditions.stop: expected a list"));
  EXPECT_THAT(error(in(R"("stop_conditions":{"stop":["x",1]})")), HasSubstr("stop_conditions.stop[1]: "));
  EXPECT_THAT(error(in(R"("stop_conditions":[])")), HasSubstr("stop_conditions: expected an object"));
  EXPECT_THAT(error(in(R"("sampling_options":{"temperature":"hot"})")), HasSubstr("sampling_options.temperature: "));
  EXPECT_THAT(error(in(R"("sampling_options":{"n":2.5})")), HasSubstr("sampling_options.n: "));
  EXPECT_THAT(error(in(R"("sampling_options":{"seed":9223372036854775808})")), HasSubstr("sampling_options.seed: "));
  EXPECT_THAT(error(in(R"("output_options":{"logprobs":true})")), HasSubstr("output_options.logprobs: "));
  EXPECT_THAT(error(in(R"("routing":{"dp_rank":-1})")), HasSubstr("routing.dp_rank: "));
  EXPECT_THAT(error(in(R"("annotations":[{}])")), HasSubstr("annotations[0]: "));
  EXPECT_THAT(error("[1]"), HasSubstr("expected an object, got a list"));
}

TEST_P(BothCodecs, IntegralFloatsAreAccepted) {
  const Request r =
      ok(R"({"token_ids":[1.0,2],"stop_conditions":{"max_tokens":4.0},"sampling_options":{"top_k":-1.0}})");
  EXPECT_THAT(r.token_ids, ElementsAre(1, 2));
  EXPECT_EQ(r.stop.max_tokens, 4U);
  EXPECT_EQ(r.sampling.top_k, -1);
}

TEST_P(BothCodecs, ListsOfLists) {
  const Request r = ok(R"({"token_ids":[[1,2],[],[3]],"model":"emb","encoding_format":null,"dimensions":2})");
  EXPECT_THAT(r.token_ids, IsEmpty());
  EXPECT_THAT(r.token_id_batches, ElementsAre(ElementsAre(1, 2), IsEmpty(), ElementsAre(3)));
  EXPECT_THAT(ok(R"({"token_ids":[]})").token_ids, IsEmpty());
  EXPECT_THAT(error(R"({"token_ids":[[1],2]})"), HasSubstr("token_ids[1]: expected a list"));
  EXPECT_THAT(error(R"({"token_ids":[1,[2]]})"), HasSubstr("token_ids[1]: "));
}

TEST_P(BothCodecs, TokenIdsAreLimited) {
  const RequestLimits limits{.max_tokens = 3};
  EXPECT_TRUE(decode(R"({"token_ids":[1,2,3]})", limits).ok());
  EXPECT_THAT(error(R"({"token_ids":[1,2,3,4]})", limits), HasSubstr("token_ids: the list has more than 3"));
  EXPECT_TRUE(decode(R"({"token_ids":[[1,2],[3]]})", limits).ok());
  EXPECT_THAT(error(R"({"token_ids":[[1,2],[3,4]]})", limits), HasSubstr("token_ids[1]: the list has more than 1"));
}

TEST_P(BothCodecs, NestingIsLimited) {
  const std::string deep = R"({"token_ids":[1],"x":[[[[1]]]]})";
  EXPECT_TRUE(decode(deep, {.max_depth = 5}).ok());
  EXPECT_THAT(error(deep, {.max_depth = 4}), HasSubstr("more than 4 levels of nesting"));
}

TEST_P(BothCodecs, TopLevelMembersMoveDown) {
  const Request r = ok(R"({"max_tokens":5,"min_tokens":2,"ignore_eos":true,"temperature":0.5,"token_ids":[1]})");
  EXPECT_EQ(r.stop.max_tokens, 5U);
  EXPECT_EQ(r.stop.min_tokens, 2U);
  EXPECT_TRUE(r.stop.ignore_eos);
  EXPECT_EQ(r.sampling.temperature, 0.5);

  const Request nested = ok(R"({"max_tokens":5,"ignore_eos":true,"temperature":0.5,"token_ids":[1],
      "stop_conditions":{"max_tokens":7,"ignore_eos":false},"sampling_options":{"temperature":0.0}})");
  EXPECT_EQ(nested.stop.max_tokens, 7U);
  EXPECT_FALSE(nested.stop.ignore_eos);
  EXPECT_EQ(nested.sampling.temperature, 0.0);
}

TEST_P(BothCodecs, CacheSaltOfEitherPlace) {
  EXPECT_EQ(ok(R"({"token_ids":[1],"extra_args":{"nvext":{"cache_salt":"t","x":1},"y":2}})").routing.cache_salt, "t");
  EXPECT_EQ(ok(R"({"token_ids":[1],"routing":{"cache_salt":"r"},"extra_args":{"nvext":{"cache_salt":"t"}}})")
                .routing.cache_salt,
            "r");
  EXPECT_EQ(ok(R"({"token_ids":[1],"extra_args":[1]})").routing.cache_salt, "");
}

TEST_P(BothCodecs, GuidedDecoding) {
  const auto guided = [](std::string_view object) {
    return ok(R"({"token_ids":[1],"sampling_options":{"guided_decoding":)" + std::string(object) + "}}")
        .sampling.guided_decoding;
  };
  const auto schema = guided(R"({"json":{"type":"object","required":["a"]}})");
  ASSERT_TRUE(schema.has_value());
  EXPECT_EQ(schema->kind, "json");
  EXPECT_EQ(schema->text, R"({"type":"object","required":["a"]})");
  EXPECT_EQ(guided(R"({"json":"{\"type\":\"object\"}"})")->text, R"({"type":"object"})");
  EXPECT_EQ(guided(R"({"choice":["a","\"b"]})")->text, R"(["a","\"b"])");
  EXPECT_EQ(guided(R"({"grammar":"root ::= \"a\""})")->text, R"(root ::= "a")");
  EXPECT_EQ(guided(R"({"structural_tag":{"type":"structural_tag"},"regex":null})")->kind, "structural_tag");
  EXPECT_FALSE(guided("{}").has_value());
  EXPECT_FALSE(guided(R"({"whitespace_pattern":" ?","backend":"xgrammar"})").has_value());

  EXPECT_THAT(error(R"({"token_ids":[1],"sampling_options":{"guided_decoding":{"regex":"a","json":{}}}})"),
              HasSubstr("sampling_options.guided_decoding.json: a second constraint besides regex"));
  EXPECT_THAT(error(R"({"token_ids":[1],"sampling_options":{"guided_decoding":{"regex":{}}}})"),
              HasSubstr("sampling_options.guided_decoding.regex: expected a string"));
  EXPECT_THAT(error(R"({"token_ids":[1],"sampling_options":{"guided_decoding":{"choice":"a"}}})"),
              HasSubstr("sampling_options.guided_decoding.choice: "));
}

TEST_P(BothCodecs, WhatBelongsToOtherRolesIsNamed) {
  const Request r = ok(R"({"token_ids":[1],"prompt_embeds":"AAAA","multi_modal_data":{"image_url":[{"Url":"x"}]},
    "prefill_result":{"disaggregated_params":{}},"bootstrap_info":{"a":1},"encoder_result":{"b":1}})");
  EXPECT_TRUE(r.has_prompt_embeds && r.has_multi_modal_data && r.has_prefill_result && r.has_bootstrap_info &&
              r.has_encoder_result);
  EXPECT_FALSE(ok(R"({"token_ids":[1],"multi_modal_data":{}})").has_multi_modal_data);
}

TEST(DecodeRequest, TrailingBytesAreAnError) {
  for (const Codec codec : {Codec::kJson, Codec::kMsgpack}) {
    std::string body = codec == Codec::kJson ? R"({"token_ids":[1]})" : "\x81\xA9token_ids\x91\x01";
    EXPECT_TRUE(decode_request(as_bytes(body), codec).ok());
    for (size_t size = 0; size < body.size(); ++size) {
      EXPECT_FALSE(decode_request(as_bytes(body).first(size), codec).ok());
    }
    EXPECT_FALSE(decode_request(as_bytes(body + "1"), codec).ok());
  }
}

TEST(DecodeRequest, MsgpackNumbersThatAreNotFinite) {
  Buffer body;
  wire::pack_map(body, 2);
  wire::pack_str(body, "token_ids");
  wire::pack_array(body, 0);
  wire::pack_str(body, "temperature");
  wire::pack_double(body, std::numeric_limits<double>::quiet_NaN());
  const auto request = decode_request(body.view(), Codec::kMsgpack);
  ASSERT_FALSE(request.ok());
  EXPECT_THAT(request.error().message, HasSubstr("temperature: the number is not finite"));
}

Result<Request> decode_packed(std::string_view ids, const RequestLimits& limits = {}) {
  Buffer body;
  wire::pack_map(body, 1);
  wire::pack_str(body, "token_ids");
  wire::pack_bin(body, as_bytes(ids));
  return decode_request(body.view(), Codec::kMsgpack, limits);
}

TEST(DecodeRequest, PackedTokenIds) {
  const auto request = decode_packed(std::string_view("\x01\0\0\0\xFF\xFF\xFF\x7F", 8));
  ASSERT_TRUE(request.ok());
  EXPECT_THAT(request->token_ids, ElementsAre(1, 0x7FFFFFFF));
  EXPECT_TRUE(decode_packed("").ok());
  EXPECT_THAT(decode_packed("abcde").error().message, HasSubstr("token_ids: 5 bytes are no list"));
  EXPECT_THAT(decode_packed("\xFF\xFF\xFF\xFF").error().message, HasSubstr("token_ids: a token id is negative"));
  EXPECT_THAT(decode_packed("aaaabbbb", {.max_tokens = 1}).error().message, HasSubstr("more than 1"));
}

TEST(DecodeRequest, InPlaceAndCopiedAreTheSame) {
  const std::string body = R"({"model":"tiny","token_ids":[1,2,3]})";
  std::string padded = body + std::string(wire::kReadPadding, '7');
  const auto in_place = decode_request(as_bytes(padded).first(body.size()), Codec::kJson, {}, wire::Padding::kPresent);
  ASSERT_TRUE(in_place.ok());
  EXPECT_EQ(in_place->token_ids, decode_request(as_bytes(body), Codec::kJson)->token_ids);
}

}  // namespace
}  // namespace dyn::llm
