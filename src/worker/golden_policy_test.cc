// Every request that official frontends of four releases made of some 200 client requests: each option of it is
// honoured or refused by its name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "llm/test_support.h"
#include "worker/request_policy.h"

namespace dyn::worker {
namespace {

using nlohmann::json;

engine::Caps caps_of_the_native_engine() {
  engine::Caps caps;
  caps.vocab_size = 261;
  caps.max_seq_len = 4096;
  caps.max_logprobs = 20;
  caps.min_p = true;
  caps.penalties = true;
  caps.multiple_choices = true;
  caps.prompt_logprobs = true;
  return caps;
}

bool has(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && !found->is_null() && !(found->is_object() && found->empty());
}

// What this worker cannot do, read from the raw body by other means than the product's.
std::set<std::string> options_to_refuse(const json& body) {
  std::set<std::string> names;
  const json empty = json::object();
  const json& sampling = body.value("sampling_options", empty);
  const json& stop = body.value("stop_conditions", empty);
  const json& output = body.value("output_options", empty);
  const json& routing = has(body, "routing") ? body["routing"] : empty;
  if (body.value("model", "") != "tiny") names.insert("model");
  for (const json& token : body["token_ids"]) {
    if (token.is_array() || token.get<uint32_t>() >= 261) names.insert("token_ids");
  }
  if (body["token_ids"].empty()) names.insert("token_ids");
  const int n = has(sampling, "n") ? sampling["n"].get<int>() : 1;
  // Frontends of 0.8 and 1.0 mix the choices of a chat.
  if (n > 1 && !output.contains("return_tokens_as_token_ids")) names.insert("n");
  if (has(sampling, "best_of") && sampling["best_of"] > 1 && sampling["best_of"] != n) names.insert("best_of");
  if (has(sampling, "guided_decoding")) {
    for (const auto& [key, value] : sampling["guided_decoding"].items()) {
      if (key != "backend" && key != "whitespace_pattern" && !value.is_null()) names.insert("guided_decoding");
    }
  }
  if (has(stop, "max_thinking_tokens")) names.insert("max_thinking_tokens");
  if (has(routing, "lora_name")) names.insert("lora_name");
  for (const char* key : {"multi_modal_data", "prompt_embeds", "prefill_result", "bootstrap_info", "encoder_result"}) {
    if (has(body, key)) names.insert(key);
  }
  return names;
}

class GoldenPolicy : public ::testing::TestWithParam<const char*> {};

TEST_P(GoldenPolicy, HonoursOrNamesEveryOption) {
  const RequestPolicy policy(caps_of_the_native_engine(), {.served_model_names = {"tiny"}});
  size_t honoured = 0;
  size_t refused = 0;
  for (const llm::RequestCase& one : llm::load_request_cases(GetParam())) {
    SCOPED_TRACE(one.name());
    const json body = json::parse(one.body);
    auto decoded = llm::decode_request(as_bytes(one.body), llm::Codec::kJson);
    ASSERT_TRUE(decoded) << decoded.error().message;
    const auto request = policy.to_engine(std::move(*decoded), 1);
    const auto expected = options_to_refuse(body);
    if (!expected.empty()) {
      ++refused;
      ASSERT_FALSE(request) << "must be refused for " << *expected.begin();
      const std::string& message = request.error().message;
      EXPECT_TRUE(expected.contains(message.substr(0, message.find(':')))) << message;
      continue;
    }
    ++honoured;
    ASSERT_TRUE(request) << request.error().message;
    const json& stop = body["stop_conditions"];
    const json& sampling = body["sampling_options"];
    const auto rest = static_cast<uint32_t>(4096 - request->token_ids.size());
    EXPECT_EQ(request->max_tokens, has(stop, "max_tokens") ? std::min(stop["max_tokens"].get<uint32_t>(), rest) : rest);
    if (has(stop, "min_tokens")) {
      EXPECT_EQ(request->min_tokens, std::min(stop["min_tokens"].get<uint32_t>(), request->max_tokens));
    }
    if (has(sampling, "seed"))
      EXPECT_EQ(request->sampling.seed, static_cast<uint64_t>(sampling["seed"].get<int64_t>()));
    if (has(sampling, "temperature")) EXPECT_EQ(request->sampling.temperature, sampling["temperature"].get<float>());
    if (has(sampling, "min_p")) EXPECT_EQ(request->sampling.min_p, sampling["min_p"].get<float>());
    if (has(sampling, "presence_penalty")) {
      EXPECT_EQ(request->sampling.presence_penalty, sampling["presence_penalty"].get<float>());
    }
    if (has(sampling, "repetition_penalty")) {
      EXPECT_EQ(request->sampling.repetition_penalty, sampling["repetition_penalty"].get<float>());
    }
    const json& output = body["output_options"];
    EXPECT_EQ(request->logprobs.has_value(), has(output, "logprobs"));
    EXPECT_EQ(request->prompt_logprobs.has_value(), has(output, "prompt_logprobs"));
    EXPECT_EQ(request->num_choices, has(sampling, "n") ? sampling["n"].get<uint32_t>() : 1U);
    if (has(stop, "ignore_eos") && stop["ignore_eos"].get<bool>()) {
      EXPECT_TRUE(request->stop_token_ids.empty());
    } else if (has(stop, "stop_token_ids")) {
      for (const json& id : stop["stop_token_ids"]) {
        EXPECT_THAT(request->stop_token_ids, ::testing::Contains(id.get<uint32_t>()));
      }
    }
  }
  EXPECT_GT(honoured, 100U);
  EXPECT_GT(refused, 50U);
}

INSTANTIATE_TEST_SUITE_P(Releases, GoldenPolicy, ::testing::ValuesIn(llm::kGoldenVersions), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
});

}  // namespace
}  // namespace dyn::worker
